"""What a plugin must keep to, checked by using it: for our plugins and for yours.

    from skipstep.testing.conformance import check_plugin
    check_plugin(MyPlugin, strength=0.5)

Its options are looked at first; then it is enabled, run, interrupted, run on other sizes, shared,
copied, saved and disabled on tiny pipelines of four families. A plugin may refuse a family, in
words and without leaving a trace, but it must serve one of them. Give options with which it does
something.
"""

import contextlib
import copy
import dataclasses
import json
import pickle
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from skipstep.plugins import catalog, kinds, options
from skipstep.plugins.errors import Incompatible, PluginError
from skipstep.plugins.run import in_any_run
from skipstep.testing.families import run, tiny_pipeline
from skipstep.testing.state import attributes, changes
from skipstep.testing.tiny import Tiny

__all__ = ["CHECKED_ON", "Conformance", "ConformanceError", "check_on", "check_options"]
__all__ += ["check_plugin"]

CHECKED_ON: tuple[str, ...] = ("flux", "pixart", "sdxl", "wan")
"""Two stacks of blocks, one stack, a UNet, and a video model with two calls per step."""

STEPS = 6
FEWEST_WORDS = 5


class ConformanceError(AssertionError):
    """Report what a plugin does not keep to."""


@dataclass
class Conformance:
    """Tell on which families a plugin was checked, and why it refused the others."""

    plugin: str
    served: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


def check_plugin(cls: type[Any], **chosen: Any) -> Conformance:
    """Check a plugin class with the chosen options on all of `CHECKED_ON`.

    Raises ConformanceError, with what was expected and what was found, at the first breach.
    """
    check_options(cls, **chosen)
    result = Conformance(cls.name)
    for family in CHECKED_ON:
        why = check_on(family, cls, **chosen)
        if why is None:
            result.served.append(family)
        else:
            result.refused[family] = why
    if not result.served:
        _fail(cls, f"refused every family, so nothing was checked: {result.refused}")
    return result


def check_options(cls: type[Any], **chosen: Any) -> None:
    """Check that a plugin's options are named, described, frozen, strict and plain data."""
    try:
        catalog.check_class(cls)
        kinds.order(cls.kind)
        schema = options.schema(cls)
    except PluginError as error:
        raise ConformanceError(f"{cls.__name__}: {error}") from error
    if not cls.summary.strip() or "\n" in cls.summary:
        _fail(cls, f"`summary` must be one line of text, and is {cls.summary!r}")
    for name, option in options.fields_of(cls).items():
        if not option.description:
            _fail(
                cls, f"option {name!r} has no description: Annotated[..., Field(description=...)]"
            )
    plugin = _built(cls, chosen)
    _check_frozen(cls, plugin)
    try:
        cls(**chosen, no_plugin_has_this_option=1)
    except (TypeError, ValueError):
        pass
    else:
        _fail(cls, 'takes unknown options in silence: set config=ConfigDict(extra="forbid")')
    try:
        text = json.dumps([options.to_dict(plugin), schema], allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConformanceError(f"{cls.__name__}: its options are not JSON: {error}") from error
    again = _built(cls, json.loads(text)[0]["options"])
    if again != plugin:
        _fail(cls, f"written to JSON and read back, {plugin!r} became {again!r}")


def _built(cls: type[Any], chosen: dict[str, Any]) -> Any:
    try:
        return options.construct(cls, chosen)
    except PluginError as error:
        raise ConformanceError(f"{cls.__name__} cannot be built: {error}") from error


def _check_frozen(cls: type[Any], plugin: Any) -> None:
    for option in dataclasses.fields(plugin):
        value = getattr(plugin, option.name)
        try:
            setattr(plugin, option.name, value)
        except AttributeError:
            continue
        _fail(cls, f"option {option.name!r} can be changed after construction: frozen=True")


def check_on(family: str, cls: type[Any], **chosen: Any) -> str | None:
    """Check a plugin on one family of tiny pipelines; return its reason if it refuses, else None.

    Raises ConformanceError at the first breach.
    """
    return _Check(family, cls, chosen).all()


class _Check:
    """One plugin on one pipeline: the pipeline as it was before, and the checks in order."""

    def __init__(self, family: str, cls: type[Any], chosen: dict[str, Any]) -> None:
        self.family = family
        self.cls = cls
        self.plugin = _built(cls, chosen)
        self.tiny: Tiny = tiny_pipeline(family)
        self.pipe = self.tiny.pipe
        self.denoiser: nn.Module = getattr(self.pipe, self.tiny.denoiser)
        self.saved = self.files()  # saving itself writes into configs, so it comes first
        self.uncached = self.run()
        first = attributes(self.pipe)
        self.run()
        self.before = attributes(self.pipe)
        # What a run of the plain pipeline changes itself, such as the scheduler's timesteps.
        self.own_changes = set(changes(first, self.before))
        self.classes = _class_attributes(self.pipe, cls)

    def all(self) -> str | None:
        """Run every check; return why the plugin refuses this pipeline, or None."""
        refusal = self.refusal()
        if refusal is not None:
            self.demand_untouched("refusing")
            return refusal
        self.pipe.disable_plugin(self.cls.name)
        self.demand_untouched("enabling and disabling")
        handle = self.pipe.enable_plugin(self.plugin)
        try:
            self.check_runs()
            self.check_report()
            self.check_pause()
            self.check_copies_and_files()
            self.check_interrupts()
            self.check_reconfiguring()
            self.check_sharing()
        finally:
            self.pipe.disable_plugins()
        handle.detach()
        self.demand_untouched("running and disabling", self.own_changes)
        self.demand_equal(
            self.run(), self.uncached, "after disabling, the plain pipeline's picture"
        )
        return None

    def run(self, pipe: Any = None, **over: Any) -> Tensor:
        """Run the pipeline, or one that shares its parts; notice what a run may not touch."""
        tiny = dataclasses.replace(self.tiny, pipe=pipe) if pipe is not None else self.tiny
        before = _switches()
        try:
            return run(tiny, **{"steps": STEPS, **over})
        finally:
            left = [name for name, value in _switches().items() if value != before[name]]
            if left:
                self.fail(f"changes {', '.join(left)} for the whole process")

    def refusal(self) -> str | None:
        """Enable the plugin, or return the words in which it refuses."""
        try:
            self.pipe.enable_plugin(self.plugin)
        except Incompatible as error:
            words = str(error).removeprefix(f"{self.cls.name}: ")
            if len(words.split()) < FEWEST_WORDS:
                self.fail(f"refuses without a reason a user can act on: {str(error)!r}")
            return words
        except Exception as error:
            raise ConformanceError(
                f"{self.where}: enabling raises {type(error).__name__} ({error}): say it in "
                "why_not(profile), which becomes Incompatible"
            ) from error
        return None

    def check_runs(self) -> None:
        """Demand that a run depends on nothing but its arguments."""
        self.expected = self.attempt(self.run, "a run")
        self.demand_equal(self.run(), self.expected, "the second of two equal runs")
        self.batch = self.attempt(lambda: self.run(batch=2, seed=3), "a batch of two")
        self.attempt(lambda: self.run(steps=2), "a run of two steps")
        self.demand_equal(self.run(batch=2, seed=3), self.batch, "a batch after a shorter run")
        self.demand_equal(self.run(), self.expected, "a run after other batches and lengths")
        self.demand_plain_scheduler("a run")

    def check_report(self) -> None:
        """Demand a report that names the plugin, speaks, and is plain data."""
        report = self.pipe.plugin_report()
        if report is None or not any(self.cls.name in name for name in report.plugins):
            self.fail(f"is missing from the report after a run: {report}")
        try:
            json.dumps(report.to_dict(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConformanceError(f"{self.where}: the report is not JSON: {error}") from error
        if not report.verdict.strip() or not str(report).strip():
            self.fail("leaves a report without a verdict")

    def check_pause(self) -> None:
        """Demand the plain pipeline inside `plugins_off`, and the plugin again behind it."""
        with self.pipe.plugins_off():
            self.demand_equal(self.run(), self.uncached, "inside plugins_off(), the picture")
        self.demand_equal(self.run(), self.expected, "after plugins_off(), the picture")

    def check_copies_and_files(self) -> None:
        """Demand that copies, pickles and saved files carry no trace of the plugin."""
        if self.files() != self.saved:
            self.fail("changes what save_pretrained writes: keep your state on the run")
        clean = self.attempt(lambda: copy.deepcopy(self.pipe), "copying the pipeline")
        self.demand_equal(self.run(clean), self.uncached, "the picture of a copied pipeline")
        pickled = self.attempt(
            lambda: pickle.loads(pickle.dumps(self.denoiser)), "pickling the denoiser"
        )
        for path, module in pickled.named_modules():
            came = vars(module).keys() - self.before[f"{self.tiny.denoiser}.{path}".rstrip(".")]
            if came:
                self.fail(f"leaves {sorted(came)} on {path or 'the denoiser'} when it is pickled")

    def check_interrupts(self) -> None:
        """Demand that Ctrl-C in the middle and at the end of a run leaves no state behind."""
        places = {"in the third denoiser call": (self.denoiser, 2)}
        places["while decoding"] = (self.pipe.vae.decoder, 0)
        for where, (module, call) in places.items():
            with _interrupt(module, call), contextlib.suppress(KeyboardInterrupt):
                self.run()
            if in_any_run():
                self.fail(f"interrupted {where}, it leaves a run open")
            self.demand_plain_scheduler(f"a run interrupted {where}")
            self.demand_equal(
                self.run(batch=2, seed=3), self.batch, f"a batch after Ctrl-C {where}"
            )
            self.demand_equal(self.run(), self.expected, f"a run after Ctrl-C {where}")

    def check_reconfiguring(self) -> None:
        """Demand that enabling it again replaces it instead of stacking a second one on top."""
        self.attempt(lambda: self.pipe.enable_plugin(self.plugin), "enabling it a second time")
        self.demand_equal(self.run(), self.expected, "after enabling it twice, the picture")
        self.pipe.disable_plugin(self.cls.name)
        self.demand_equal(self.run(), self.uncached, "enabled twice, disabled once: the picture")
        self.attempt(lambda: self.pipe.enable_plugin(self.plugin), "enabling it after disabling")
        self.demand_equal(self.run(), self.expected, "after enabling it again, the picture")

    def check_sharing(self) -> None:
        """Demand that a pipeline that shares the denoiser is left alone, and can have its own."""
        other = type(self.pipe)(**self.pipe.components)
        other.set_progress_bar_config(disable=True)
        self.demand_equal(
            self.run(other),
            self.uncached,
            "the picture of a pipeline that shares the denoiser and has no plugin",
        )
        other.enable_plugin(self.plugin)
        self.demand_equal(self.run(other), self.expected, "a second pipeline with the plugin")
        self.demand_equal(self.run(), self.expected, "the first one beside it")
        self.pipe.disable_plugins()
        self.demand_equal(self.run(other), self.expected, "the second after disabling the first")
        self.demand_equal(self.run(), self.uncached, "the first, disabled, beside the second")
        other.disable_plugins()

    def files(self) -> dict[str, bytes]:
        """Return what `save_pretrained` writes of the denoiser and the scheduler."""
        with tempfile.TemporaryDirectory() as folder:
            self.denoiser.save_pretrained(f"{folder}/denoiser")  # type: ignore[operator]
            self.pipe.scheduler.save_pretrained(f"{folder}/scheduler")
            Path(folder, "pipeline.json").write_text(
                json.dumps({key: str(value) for key, value in sorted(self.pipe.config.items())})
            )
            return {
                str(path.relative_to(folder)): path.read_bytes()
                for path in sorted(Path(folder).rglob("*"))
                if path.is_file()
            }

    def attempt(self, function: Callable[[], Any], what: str) -> Any:
        """Call a function; a failure is the plugin's."""
        try:
            return function()
        except ConformanceError:
            raise
        except Exception as error:
            raise ConformanceError(
                f"{self.where}: {what} fails: {type(error).__name__}: {error}"
            ) from error

    def demand_equal(self, found: Tensor, expected: Tensor, what: str) -> None:
        """Demand equal pictures, to the bit."""
        if found.shape != expected.shape or not torch.equal(found, expected):
            apart = (
                f"{float((found - expected).abs().max()):.3g} apart"
                if found.shape == expected.shape
                else f"of shape {tuple(found.shape)}, not {tuple(expected.shape)}"
            )
            self.fail(f"{what} must be bit-identical to what it was, and is {apart}")

    def demand_untouched(self, doing: str, allowed: set[str] | None = None) -> None:
        """Demand that modules, scheduler, pipeline and their classes are as before."""
        now = self.attempt(lambda: attributes(self.pipe), f"looking at the pipeline after {doing}")
        left = [change for change in changes(self.before, now) if change not in (allowed or ())]
        if left:
            self.fail(f"{doing} leaves a trace: {', '.join(left[:5])}")
        classes = _class_attributes(self.pipe, self.cls)
        left = changes(self.classes, classes)
        if left:
            self.fail(f"{doing} leaves a trace on a class: {', '.join(left[:5])}")

    def demand_plain_scheduler(self, after: str) -> None:
        """Demand the user's own scheduler, without anything on it."""
        mine = self.before["pipeline"]["scheduler"]
        if self.pipe.scheduler is not mine or "step" in vars(self.pipe.scheduler):
            self.fail(f"after {after}, the pipeline's scheduler is not the user's again")

    @property
    def where(self) -> str:
        return f"{self.cls.__name__} on {self.family}"

    def fail(self, problem: str) -> None:
        raise ConformanceError(f"{self.where}: {problem}")


def _fail(cls: type[Any], problem: str) -> None:
    raise ConformanceError(f"{cls.__name__}: {problem}")


@contextlib.contextmanager
def _interrupt(module: nn.Module, call: int) -> Iterator[None]:
    """Press Ctrl-C in the given call of a module, counted from 0."""
    seen = [0]

    def press(*_: object) -> None:
        seen[0] += 1
        if seen[0] > call:
            raise KeyboardInterrupt

    hook = module.register_forward_pre_hook(press)
    try:
        yield
    finally:
        hook.remove()


def _switches() -> dict[str, Any]:
    """Return what belongs to the caller's process: random numbers and torch's switches."""
    return {
        "torch's random numbers": torch.random.get_rng_state().tolist(),
        "torch's default type": torch.get_default_dtype(),
        "torch's number of threads": torch.get_num_threads(),
        "torch's determinism": torch.are_deterministic_algorithms_enabled(),
    }


def _class_attributes(pipe: Any, plugin: type[Any]) -> dict[str, dict[str, Any]]:
    """Return the attributes of every class a plugin might be tempted to keep state on.

    The pipeline's own class is left out: its `__call__` is wrapped once and for all, and does
    nothing for pipelines without plugins.
    """
    classes = {plugin, type(pipe.scheduler)}
    for component in pipe.components.values():
        if isinstance(component, nn.Module):
            classes |= {type(module) for module in component.modules()}
    return {
        f"{cls.__module__}.{cls.__qualname__}": {
            # `__slotnames__` is where the copy module remembers a class.
            key: value
            for key, value in vars(cls).items()
            if key != "__slotnames__"
        }
        for cls in classes
    }
