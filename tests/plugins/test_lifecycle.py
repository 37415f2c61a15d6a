"""Attach and detach are exact inverses, whatever happens in between."""

import copy
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pydantic
import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline
from pydantic import ConfigDict
from torch import Tensor, nn

from skipstep.caching.easycache import EasyCache
from skipstep.caching.fbcache import FBCache
from skipstep.plugins.errors import Incompatible, NotRestored, PluginError
from skipstep.plugins.lifecycle import manager_of
from skipstep.plugins.run import current_run
from skipstep.plugins.seam import find_seam
from skipstep.testing import Tiny, run, tiny_pipeline

STRICT = ConfigDict(extra="forbid")


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Count:
    """Count the calls of every block."""

    name: ClassVar[str] = "count"
    kind: ClassVar[str] = "custom"
    summary: ClassVar[str] = "Counts."
    paper: ClassVar[str] = ""

    fails_at: int = 1000

    def attach(self, site: Any) -> None:
        """Wrap block by block, and fail in the middle if asked to."""
        site.on_begin(lambda run: run.state.update(count=0))
        site.on_report(lambda run, report: report.notes.append(f"{run.state['count']} blocks"))
        blocks = [b for d in site.profile.denoisers for stack in d.stacks for b in stack]

        def wrap(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            now = site.run()
            if now is not None:
                now.state["count"] += 1
            return call_next(*args, **kwargs)

        for place, block in enumerate(blocks):
            if place == self.fails_at:
                raise OSError("no more")
            site.wrap(block, wrap, 50)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Picky:
    """Refuse every pipeline."""

    name: ClassVar[str] = "picky"
    kind: ClassVar[str] = "custom"
    summary: ClassVar[str] = "Refuses."
    paper: ClassVar[str] = ""

    def why_not(self, profile: Any) -> str | None:
        """Refuse."""
        return f"{profile.pipeline} is not to my taste"


def traces(pipe: Any) -> list[dict[str, Any]]:
    """Return what every module holds, object by object, and the names the pipeline and its
    scheduler hold, whose values change from run to run.
    """
    modules = [m for c in pipe.components.values() if isinstance(c, nn.Module) for m in c.modules()]
    found: list[dict[str, Any]] = [
        {name: id(value) for name, value in vars(module).items()} for module in modules
    ]
    return [*found, dict.fromkeys(vars(pipe.scheduler)), dict.fromkeys(vars(pipe))]


def steps_of(pipe: Any) -> str:
    """Return the only timeline of the last run."""
    (marks,) = pipe.plugin_report().timeline().values()
    return str(marks)


@pytest.fixture
def tiny() -> Iterator[Tiny]:
    made = tiny_pipeline("flux")
    yield made
    made.pipe.disable_plugins()


@pytest.fixture
def warm(tiny: Tiny) -> tuple[Tiny, Tensor, list[dict[str, Any]]]:
    """Return a pipeline that ran once, its picture, and its dictionaries."""
    return tiny, run(tiny, steps=8), traces(tiny.pipe)


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_a_failing_attach_leaves_no_trace(tiny: Tiny, fails_at: int) -> None:
    original, before = FluxPipeline.__call__, traces(tiny.pipe)
    with pytest.raises(OSError, match="no more"):
        tiny.pipe.enable_plugin(Count(fails_at=fails_at))
    assert traces(tiny.pipe) == before
    assert FluxPipeline.__call__ is original
    assert not manager_of(tiny.pipe).handles  # type: ignore[union-attr]


def test_a_refused_plugin_leaves_no_trace(tiny: Tiny) -> None:
    before = traces(tiny.pipe)
    with pytest.raises(Incompatible, match="^picky: FluxPipeline is not to my taste$"):
        tiny.pipe.enable_plugin(Picky())
    assert traces(tiny.pipe) == before


@pytest.mark.parametrize("name", ["easycache", "fbcache", "fora", "taylorseer", "cache"])
def test_disabling_restores_every_dictionary_and_the_picture(
    warm: tuple[Tiny, Tensor, list[dict[str, Any]]], name: str
) -> None:
    tiny, plain, before = warm
    original = FluxPipeline.__call__
    tiny.pipe.enable_plugin(name)
    run(tiny, steps=8)
    tiny.pipe.disable_plugin(name)
    assert torch.equal(run(tiny, steps=8), plain)
    assert traces(tiny.pipe) == before
    assert FluxPipeline.__call__ is original


def test_the_class_is_wrapped_while_one_of_its_pipelines_has_a_plugin(tiny: Tiny) -> None:
    original = FluxPipeline.__call__
    other = tiny_pipeline("flux").pipe
    tiny.pipe.enable_plugin("fora")
    other.enable_plugin("fora")
    assert FluxPipeline.__call__ is not original
    tiny.pipe.disable_plugins()
    assert FluxPipeline.__call__ is not original
    other.disable_plugins()
    assert FluxPipeline.__call__ is original


def test_a_decorator_put_on_the_class_meanwhile_stays_and_plugins_go_on(tiny: Tiny) -> None:
    original = FluxPipeline.__call__
    tiny.pipe.enable_plugin("fora")
    try:
        FluxPipeline.__call__ = torch.no_grad()(FluxPipeline.__call__)
        decorated = FluxPipeline.__call__
        run(tiny)
        assert tiny.pipe.plugin_report().total == 4
        tiny.pipe.disable_plugins()
        assert FluxPipeline.__call__ is decorated
        plain = run(tiny)
        tiny.pipe.enable_plugin("fora")
        assert not torch.equal(run(tiny, steps=8), plain)
        assert len(tiny.pipe.plugin_report().calls) == 8
    finally:
        tiny.pipe.disable_plugins()
        FluxPipeline.__call__ = original


def test_enabling_again_reconfigures_in_place(tiny: Tiny) -> None:
    first = tiny.pipe.enable_plugin("fora", interval=2, warmup_steps=1, final_steps=1)
    run(tiny, steps=8)
    assert steps_of(tiny.pipe) == "#.#.#.##"
    seam = find_seam(tiny.pipe.transformer)
    second = tiny.pipe.enable_plugin("fora", interval=4, warmup_steps=1, final_steps=1)
    assert find_seam(tiny.pipe.transformer) is seam
    assert second.is_attached and not first.is_attached
    run(tiny, steps=8)
    assert steps_of(tiny.pipe) == "#...#..#"
    first.detach()
    assert second.is_attached
    assert repr(second).endswith("attached>")
    second.detach()
    second.detach()
    assert repr(second).endswith("detached>")
    assert second.report() is tiny.pipe.plugin_report()


def test_two_of_one_kind_are_refused_unless_replaced(tiny: Tiny) -> None:
    tiny.pipe.enable_plugin("fbcache")
    with pytest.raises(Incompatible) as caught:
        tiny.pipe.enable_plugin("easycache")
    assert str(caught.value) == (
        "easycache: the cache plugin 'fbcache' is already active and two of one kind do not "
        "combine: disable_plugin('fbcache') first, or enable_plugin('easycache', replace=True)"
    )
    assert list(manager_of(tiny.pipe).handles) == ["fbcache"]  # type: ignore[union-attr]
    tiny.pipe.enable_plugin("easycache", replace=True)
    assert list(manager_of(tiny.pipe).handles) == ["easycache"]  # type: ignore[union-attr]


def test_a_failing_reconfigure_or_replace_keeps_the_old_plugin(tiny: Tiny) -> None:
    tiny.pipe.enable_plugin(Count())
    tiny.pipe.enable_plugin("fora", interval=2, warmup_steps=1, final_steps=1)
    run(tiny, steps=8)
    notes, marks = tiny.pipe.plugin_report().notes, steps_of(tiny.pipe)
    with pytest.raises(OSError, match="no more"):
        tiny.pipe.enable_plugin(Count(fails_at=2))
    with pytest.raises(PluginError):
        tiny.pipe.enable_plugin("deepcache", replace=True)
    with pytest.raises(PluginError):
        tiny.pipe.enable_plugin("fora", interval=0)
    run(tiny, steps=8)
    assert tiny.pipe.plugin_report().notes == notes
    assert steps_of(tiny.pipe) == marks == "#.#.#.##"


def test_what_is_not_active_cannot_be_disabled(tiny: Tiny) -> None:
    text = r"^plugin 'fora' is not active on this pipeline \(active: none\)$"
    with pytest.raises(PluginError, match=text):
        tiny.pipe.disable_plugin("fora")
    tiny.pipe.enable_plugin("easycache")
    with pytest.raises(PluginError, match=r"\(active: easycache\)$"):
        tiny.pipe.disable_plugin("fora")


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["easycache", "fbcache", "taylorseer"])
def test_an_interrupted_run_leaves_no_state(tiny: Tiny, name: str, error: BaseException) -> None:
    tiny.pipe.enable_plugin(name, warmup_steps=1, final_steps=1)
    clean = run(tiny, steps=8)
    untouched = dict(vars(tiny.pipe.scheduler))

    def stop(pipe: Any, step: int, *_: Any) -> dict[str, Any]:
        if step == 4:
            raise error
        return {}

    with pytest.raises(type(error)):
        run(tiny, steps=8, seed=5, batch=2, callback_on_step_end=stop)
    report = tiny.pipe.plugin_report()
    assert report.steps == 5 and len(report.calls) == 5
    assert report.verdict.startswith(f"The run was interrupted ({type(error).__name__}: ")
    assert set(vars(tiny.pipe.scheduler)) == set(untouched)
    assert tiny.pipe.scheduler.step.__func__ is type(tiny.pipe.scheduler).step
    assert torch.equal(run(tiny, steps=8), clean)
    assert tiny.pipe.plugin_report().error is None


def test_plugins_inside_a_block_leave_with_it(tiny: Tiny) -> None:
    handle = tiny.pipe.enable_plugin("fora", interval=2)
    wanted = {"name": "easycache", "options": {"threshold": 0.5}}
    with pytest.raises(ZeroDivisionError), tiny.pipe.plugins(wanted):
        assert list(manager_of(tiny.pipe).handles) == ["easycache"]  # type: ignore[union-attr]
        raise ZeroDivisionError
    (after,) = manager_of(tiny.pipe).handles.values()  # type: ignore[union-attr]
    assert after.plugin == handle.plugin
    with pytest.raises(Incompatible), tiny.pipe.plugins("easycache", "deepcache"):
        pass
    assert list(manager_of(tiny.pipe).handles) == ["fora"]  # type: ignore[union-attr]
    with tiny.pipe.plugins(FBCache(threshold=0.5)) as same:
        assert same is tiny.pipe


def test_plugins_off_runs_plain_and_keeps_them_attached(tiny: Tiny) -> None:
    plain = run(tiny, steps=8)
    with tiny.pipe.plugins_off():
        pass
    tiny.pipe.enable_plugin("fora")
    cached = run(tiny, steps=8)
    report = tiny.pipe.plugin_report()
    with tiny.pipe.plugins_off(), tiny.pipe.plugins_off():
        assert torch.equal(run(tiny, steps=8), plain)
    assert tiny.pipe.plugin_report() is report
    assert torch.equal(run(tiny, steps=8), cached)


def test_a_collected_pipeline_detaches_from_a_shared_denoiser() -> None:
    tiny = tiny_pipeline("flux")
    survivor = FluxPipeline.from_pipe(tiny.pipe)
    original = FluxPipeline.__call__
    handle = tiny.pipe.enable_plugin("fbcache")
    transformer, gone = tiny.pipe.transformer, weakref.ref(tiny.pipe)
    run(tiny)
    assert find_seam(transformer) is not None
    del tiny
    gc.collect()
    assert gone() is None
    assert all(find_seam(module) is None for module in transformer.modules())
    assert all("_compiled_call_impl" not in vars(module) for module in transformer.modules())
    assert FluxPipeline.__call__ is original
    assert not handle.is_attached
    handle.detach()
    assert handle.report() is not None and "detached" in repr(handle)
    assert survivor.plugin_report() is None


def test_nothing_of_a_run_is_held_after_it(tiny: Tiny) -> None:
    tiny.pipe.enable_plugin("taylorseer", warmup_steps=1, final_steps=1)
    held: list[weakref.ref[Any]] = []

    def look(pipe: Any, *_: Any) -> dict[str, Any]:
        now = current_run(manager_of(pipe))
        assert now is not None
        held.append(weakref.ref(now))
        memories = [value[1] for key, value in now.state.items() if key[1:2] == ("memory",)]
        slots = [s for memory in memories for h in memory.histories.values() for s in h._slots]
        held.extend(weakref.ref(slot.values) for slot in slots if slot is not None)
        return {}

    run(tiny, steps=4, callback_on_step_end=look)
    gc.collect()
    assert len(held) > 4 and all(reference() is None for reference in held)


@pytest.mark.parametrize("base_has_plugins", [False, True])
def test_a_subclass_that_calls_super_runs_once(base_has_plugins: bool) -> None:
    class Louder(FluxPipeline):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    tiny = tiny_pipeline("flux")
    if base_has_plugins:
        tiny.pipe.enable_plugin("easycache")
    pipe = Louder.from_pipe(tiny.pipe)
    pipe.set_progress_bar_config(disable=True)
    louder = Tiny(pipe, tiny.call, tiny.denoiser, tiny.guidance)
    own = Louder.__call__
    plain = run(louder, steps=8)
    pipe.enable_plugin("fora")
    assert not torch.equal(run(louder, steps=8), plain)
    assert len(pipe.plugin_report().calls) == 8
    assert tiny.pipe.plugin_report() is None
    pipe.disable_plugins()
    assert Louder.__call__ is own
    assert torch.equal(run(louder, steps=8), plain)
    tiny.pipe.disable_plugins()


def test_a_subclass_without_a_call_of_its_own_keeps_the_base_wrapped() -> None:
    class Same(StableDiffusionXLPipeline):  # type: ignore[misc]
        pass

    original = StableDiffusionXLPipeline.__call__
    base = tiny_pipeline("sdxl")
    base.pipe.enable_plugin("deepcache")
    pipe = Same.from_pipe(base.pipe)
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_plugin("deepcache")
    base.pipe.disable_plugins()
    run(Tiny(pipe, base.call, base.denoiser, base.guidance))
    assert len(pipe.plugin_report().calls) == 4
    pipe.disable_plugins()
    assert StableDiffusionXLPipeline.__call__ is original
    assert "__call__" not in vars(Same)


def test_a_replaced_denoiser_is_followed(tiny: Tiny) -> None:
    other = copy.deepcopy(tiny.pipe.transformer)
    handle = tiny.pipe.enable_plugin("fora")
    cached, old = run(tiny, steps=8), tiny.pipe.transformer
    tiny.pipe.transformer = other
    assert torch.equal(run(tiny, steps=8), cached)
    assert len(tiny.pipe.plugin_report().calls) == 8
    assert find_seam(old) is None and find_seam(other) is not None
    handle.detach()
    assert find_seam(other) is None


def test_a_denoiser_replaced_by_one_it_cannot_serve_is_refused_at_the_call(tiny: Tiny) -> None:
    tiny.pipe.enable_plugin("fbcache")
    tiny.pipe.transformer = copy.deepcopy(tiny.pipe.transformer)
    tiny.pipe.transformer.transformer_blocks = tiny.pipe.transformer.transformer_blocks[:1]
    tiny.pipe.transformer.single_transformer_blocks = nn.ModuleList()
    with pytest.raises(Incompatible, match="^fbcache: .* has no list of two or more equal blocks"):
        run(tiny)


def test_a_seam_that_will_not_leave_is_reported(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = tiny.pipe.enable_plugin("easycache")
    seam = find_seam(tiny.pipe.transformer)
    assert seam is not None
    uninstall = seam.uninstall
    monkeypatch.setattr(seam, "uninstall", lambda: None)
    with pytest.raises(NotRestored, match="FluxTransformer2DModel still carries a seam"):
        handle.detach()
    uninstall()


def test_kinds_stack_and_leave_in_any_order(tiny: Tiny) -> None:
    plain, before = run(tiny, steps=8), traces(tiny.pipe)
    tiny.pipe.enable_plugin(Count())
    tiny.pipe.enable_plugin(EasyCache(threshold=0.5))
    run(tiny, steps=8)
    skipped = steps_of(tiny.pipe).count(".")
    assert skipped
    assert tiny.pipe.plugin_report().notes == [f"{4 * (8 - skipped)} blocks"]
    tiny.pipe.disable_plugin("count")
    tiny.pipe.disable_plugin("easycache")
    assert torch.equal(run(tiny, steps=8), plain)
    assert traces(tiny.pipe) == before
