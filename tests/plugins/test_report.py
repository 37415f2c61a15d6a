"""The report says what happened: counted, not guessed, and in plain words."""

import gc
import json
import re
from types import SimpleNamespace
from typing import Any, ClassVar

import pydantic
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from pydantic import ConfigDict
from torch import Tensor, nn

from skipstep.caching.base import Choice
from skipstep.plugins.cache import DenoiserCache
from skipstep.plugins.report import Call, Report
from skipstep.testing import run, tiny_pipeline

STRICT = ConfigDict(extra="forbid")


def call(step: int, *choices: Choice, branch: int = 0, seconds: float = 1.0) -> Call:
    """Make a denoiser call of four blocks."""
    computed = sum(choice.compute for choice in choices)
    return Call(step, "unet", branch, list(choices), 4.0 * computed, 4.0 * len(choices), seconds)


def skipped() -> Choice:
    return Choice(False, "small change", 0.01, 0.1)


def computed(why: str = "warm-up", value: float | None = None) -> Choice:
    return Choice(True, why, value, None if value is None else 0.1)


def report(*calls: Call, **fields: Any) -> Report:
    return Report("ToyPipeline", ["toy"], steps=len(calls), calls=list(calls), **fields)


def test_the_verdict_counts_what_was_skipped() -> None:
    made = report(call(0, computed(), computed()), call(1, skipped(), computed("changed", 0.3)))
    assert made.verdict == (
        "Skipped 1 of 4 sample computations: 25% of the block computations saved."
    )
    made.flops_done, made.flops_full = 70.0, 100.0
    assert "25% of the block computations, 30% of the FLOPs saved." in made.verdict
    assert made.fraction == 0.75


def test_when_nothing_was_skipped_the_verdict_names_the_knob() -> None:
    values = [0.5, 0.2, 0.3, 0.4, 0.6]
    calls = [call(i + 1, computed("changed", value)) for i, value in enumerate(values)]
    made = report(call(0, computed("first")), *calls, threshold_option="threshold")
    assert made.verdict == (
        "Nothing was skipped: smallest change 0.2, threshold 0.1; "
        "0.31 would have skipped about 2 of 6."
    )


def test_when_every_step_was_forced_the_verdict_says_by_what() -> None:
    made = report(call(0, computed("first")), call(1, computed("final")))
    assert made.verdict == (
        "Nothing was skipped: every step was computed because of: final, first (2 steps)."
    )


def test_a_warm_up_that_takes_a_short_run_is_named_with_its_knob() -> None:
    calls = [call(step, computed("warm-up")) for step in range(1, 5)]
    made = report(call(0, computed("first")), *calls, call(5, computed("final")))
    assert made.verdict == (
        "Nothing was skipped: the warm-up takes 5 of 6 steps, the others: final. Pass a smaller "
        "warmup_steps, 2 for example."
    )


def test_an_interrupted_run_and_an_unwatched_one_say_so() -> None:
    made = report(call(0, computed("first")), error="KeyboardInterrupt: ")
    assert made.verdict.startswith("The run was interrupted (KeyboardInterrupt: ). Nothing was")
    assert report().verdict == "No denoiser call was watched in this run."


def test_warnings_are_part_of_the_verdict() -> None:
    made = report(call(0, skipped()), warnings=["Mind the gap."])
    assert made.verdict.endswith("saved. Mind the gap.")


def test_a_cache_that_costs_more_than_it_saves_says_so() -> None:
    calls = [call(0, computed("first"), seconds=9)]
    calls += [call(step, computed("changed", 0.2), seconds=1) for step in range(1, 4)]
    calls += [call(4, skipped(), seconds=2)]
    made = report(*calls)
    cache: Any = SimpleNamespace(denoiser=SimpleNamespace(name="unet"))
    DenoiserCache._warn(cache, calls, made)
    assert made.warnings == [
        "Slower than uncached on unet: its calls took 5 s, 4 full ones would take about 4 s. "
        "On a model this small switch the cache off."
    ]
    quick = report(*calls[:4], call(4, skipped(), seconds=0.1))
    DenoiserCache._warn(cache, quick.calls, quick)
    assert quick.warnings == []


def test_the_timeline_has_a_line_per_branch() -> None:
    both = call(0, computed(), computed())
    made = report(both, call(1, skipped(), computed()), call(2, skipped(), skipped()))
    assert made.timeline() == {"unet": "#+."}
    made.calls += [call(0, computed(), branch=1)]
    assert made.timeline() == {"unet[0]": "#+.", "unet[1]": "#"}
    assert made.table().splitlines()[2].split()[:4] == ["1", "unet", "0", "1/2"]
    assert "small change (0.01 / 0.1); warm-up" in made.table()


@pytest.mark.parametrize("family", ["flux", "wan", "sdxl"])
def test_a_report_is_json_and_text(family: str) -> None:
    tiny = tiny_pipeline(family)
    tiny.pipe.enable_plugin("easycache", threshold=5.0, warmup_steps=2)
    run(tiny, steps=6)
    made = tiny.pipe.plugin_report()
    data = json.loads(json.dumps(made.to_dict()))
    assert data["timeline"] == made.timeline()
    assert data["verdict"] == made.verdict and data["fraction"] == made.fraction
    assert data["calls"][0]["choices"][0]["why"] == "first"
    assert made.plugins == ["easycache(warmup_steps=2, threshold=5.0)"]
    assert str(made).startswith(f"{type(tiny.pipe).__name__} with easycache(")
    assert re.search(r"6 steps, [\d.]+ s, [\d.]+ MiB held, [\d.]+ of [\d.]+ GFLOP", str(made))
    assert made.seconds >= sum(each.seconds for each in made.calls) > 0


def test_the_notebook_view_escapes_what_it_shows() -> None:
    bad = "<script>alert(1)</script>"
    made = report(call(0, computed(bad)), error=bad, warnings=[bad])
    made.calls[0].denoiser = bad
    view = made._repr_html_()
    assert "<script>" not in view and "&lt;script&gt;" in view
    assert 'title="step 0: computed"' in view


class Pairs(nn.Module):
    """A denoiser whose blocks are no chain: each sees its predecessor's output twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 4) for _ in range(3))

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
        for block in self.blocks:
            hidden_states = block(torch.cat([hidden_states, hidden_states], dim=-1))
        return hidden_states


class Single(nn.Module):
    """A denoiser of one weight; `how` says which tensors it writes into."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), 0.5))
        self.how = how
        self.buffer = torch.zeros(2, 4)
        self.is_broken = False

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        sample = sample.add_(0.1) if self.how == "input" else sample + 0.1
        output = sample * self.weight + timestep / 1000
        if self.is_broken:
            output = output * float("nan")
        return self.buffer.copy_(output) if self.how == "buffer" else output


class Toy(DiffusionPipeline):  # type: ignore[misc]
    """A pipeline with one or two denoisers."""

    def __init__(self, prior: nn.Module, unet: nn.Module, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(prior=prior, unet=unet, scheduler=scheduler)
        self.break_at = -1

    @torch.no_grad()
    def __call__(self, steps: int = 12, scales: bool = False) -> Tensor:
        self.scheduler.set_timesteps(steps)
        x = torch.linspace(-1, 1, 8).reshape(2, 4)
        for i, t in enumerate(self.scheduler.timesteps):
            if isinstance(self.unet, Single):
                self.unet.is_broken = i == self.break_at
            guided = self.unet(x.clone(), t)
            guided = guided.mul_(0.9) if scales else guided * 0.9
            if self.prior is not None:
                guided = guided + self.prior(x * 2, t)
            x = self.scheduler.step(torch.nan_to_num(guided), t, x).prev_sample
        return x


def toy(unet: nn.Module, prior: nn.Module | None = None) -> Toy:
    pipe = Toy(nn.Identity(), unet, FlowMatchEulerDiscreteScheduler())
    pipe.prior = prior
    return pipe


def test_a_model_whose_blocks_are_no_chain_is_computed_and_the_report_says_why() -> None:
    pipe = toy(Pairs().eval())
    plain = pipe()
    pipe.enable_plugin("cache", gate="interval", span="residual", warmup_steps=1)
    assert torch.equal(pipe(), plain)
    assert pipe.plugin_report().verdict == (
        "Nothing was skipped: contract not learned: the outputs of Linear are not the inputs of "
        "the next block, so nothing can stand in for it."
    )


def test_a_denoiser_that_cannot_be_served_beside_one_that_can_is_named() -> None:
    class Chain(Pairs):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, hidden_states: Tensor, timestep: Tensor) -> Tensor:
            for block in self.blocks:
                hidden_states = block(hidden_states)
            return hidden_states

    pipe = toy(Chain().eval(), Single())
    pipe.enable_plugin("fbcache", threshold=5, warmup_steps=1)
    pipe()
    made = pipe.plugin_report()
    assert made.notes == ["prior is not cached: Single has no list of two or more equal blocks"]
    assert set(made.timeline()) == {"unet"} and "." in made.timeline()["unet"]


def test_values_that_are_not_finite_are_computed_and_reported() -> None:
    pipe = toy(Single())
    pipe.enable_plugin("easycache", warmup_steps=4)
    pipe.break_at = 3
    pipe()
    assert (
        "unet produced values that are not finite; those steps were computed, not skipped."
        in pipe.plugin_report().verdict
    )


@pytest.mark.parametrize(
    ("how", "scales", "delta"),
    [("buffer", False, False), ("", True, False), ("input", False, True)],
    ids=["its output buffer", "the pipeline scales the output", "its input"],
)
def test_a_tensor_changed_in_place_is_noticed_and_copied_from_then_on(
    how: str, scales: bool, delta: bool
) -> None:
    span = {"type": "output", "delta": delta}
    options = {"gate": "interval", "span": span, "warmup_steps": 1, "final_steps": 1}
    clean = toy(Single())
    clean.enable_plugin("cache", **options)
    expected = clean()
    assert "." in clean.plugin_report().timeline()["unet"]
    pipe = toy(Single(how))
    if how == "buffer":
        # Something writes into the buffer between two calls.
        inner = pipe.unet
        step = pipe.scheduler.step

        def disturb(*args: Any, **kwargs: Any) -> Any:
            inner.buffer.add_(1)
            return step(*args, **kwargs)

        pipe.scheduler.step = disturb
    pipe.enable_plugin("cache", **options)
    pipe(scales=scales)
    assert "unet changes tensors in place that the cache held; it now keeps copies." in (
        pipe.plugin_report().verdict
    )
    again = pipe(scales=scales)
    assert "in place" not in pipe.plugin_report().verdict
    torch.testing.assert_close(again, expected, rtol=0, atol=0)


def flops_by_hand(tiny: Any, path: str) -> float:
    """Count 2 multiply-adds per weight and token of every layer under `path`, and attention's two
    products, in one uncached denoiser call.
    """
    model = getattr(tiny.pipe, tiny.denoiser)
    total = [0.0]

    def layer(module: nn.Module, args: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Linear | nn.Conv2d)
        total[0] += 2 * output.numel() * module.weight[0].numel()

    def attention(module: Any, args: Any, kwargs: Any, output: Tensor) -> None:
        query = args[0]
        given = kwargs.get("encoder_hidden_states")
        keys = query.shape[1] if given is None else given.shape[1]
        total[0] += 4 * query.shape[0] * query.shape[1] * keys * module.inner_dim

    hooks = []
    for name, module in model.named_modules():
        if not name.startswith(path):
            continue
        if isinstance(module, nn.Linear | nn.Conv2d):
            hooks.append(module.register_forward_hook(layer))
        elif type(module).__name__ == "Attention":
            hooks.append(module.register_forward_hook(attention, with_kwargs=True))
    with tiny.pipe.plugins_off():
        run(tiny, steps=2)
    for hook in hooks:
        hook.remove()
    return total[0] / 2


def test_flops_are_those_counted_by_hand() -> None:
    tiny = tiny_pipeline("pixart")
    tiny.pipe.enable_plugin("fbcache", threshold=5.0, warmup_steps=1)
    run(tiny, steps=6)
    made = tiny.pipe.plugin_report()
    marks = made.timeline()["transformer"]
    whole = flops_by_hand(tiny, "")
    behind = sum(flops_by_hand(tiny, f"transformer_blocks.{j}") for j in (1, 2, 3))
    assert made.flops_full == pytest.approx(6 * whole, rel=1e-6)
    expected = marks.count("#") * whole + marks.count(".") * (whole - behind)
    assert made.flops_done == pytest.approx(expected, rel=1e-6)
    assert made.fraction == (marks.count("#") * 4 + marks.count(".")) / 24


def test_flops_follow_the_shape_of_every_call() -> None:
    tiny = tiny_pipeline("qwenimage")
    tiny.pipe.enable_plugin("easycache", threshold=0)
    run(tiny, steps=2, negative_prompt="a much longer prompt than the other one, word by word")
    calls = tiny.pipe.plugin_report().calls
    assert calls[0].flops_full != calls[1].flops_full
    assert calls[0].flops_full == calls[2].flops_full


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=STRICT)
class Watch:
    """Count the bytes of all live tensors at the end of a run, before it is dropped."""

    name: ClassVar[str] = "watch"
    kind: ClassVar[str] = "custom"
    summary: ClassVar[str] = "Counts."
    paper: ClassVar[str] = ""

    seen: list[dict[int, int]] = pydantic.Field(default_factory=list)

    def attach(self, site: Any) -> None:
        """Look when the report is made."""
        site.on_report(lambda run, report: self.seen.append(live_storages()))


def live_storages() -> dict[int, int]:
    """Return address -> bytes of all tensors alive, but for the compiler's fake ones."""
    gc.collect()
    real = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]
    storages = [x.untyped_storage() for x in real]
    return {s.data_ptr(): s.nbytes() for s in storages}


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("flux", "fbcache"),
        ("pixart", "taylorseer"),
        ("sdxl", "deepcache"),
        pytest.param("flux", "easycache", marks=pytest.mark.slow),
        pytest.param("flux", "taylorseer", marks=pytest.mark.slow),
        pytest.param("pixart", "easycache", marks=pytest.mark.slow),
        pytest.param("pixart", "fora", marks=pytest.mark.slow),
    ],
)
def test_the_bytes_said_to_be_held_are_held(family: str, name: str) -> None:
    tiny = tiny_pipeline(family)
    tiny.pipe.enable_plugin(name, warmup_steps=3)
    # The first run learns and measures; the pipeline itself keeps tensors from run to run.
    run(tiny, steps=8)
    watch = Watch()
    tiny.pipe.enable_plugin(watch)
    before = live_storages()
    picture = run(tiny, steps=8)
    others = before | live_storages()
    held = sum(size for address, size in watch.seen[-1].items() if address not in others)
    assert picture.shape[0] == 1
    said = tiny.pipe.plugin_report().bytes_held
    assert said > 0
    assert said == pytest.approx(held, rel=0.1)
