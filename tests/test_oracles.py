"""Caches against other implementations of the same thing: diffusers' own, and loops written here.

diffusers' First Block Cache takes one decision for the whole batch; ours takes one per sample. The
two coincide where a denoiser call holds one row: models that make two calls for guidance (Wan,
Qwen-Image), models that take guidance as an input (Flux, HunyuanVideo), and the others with
guidance off. With guidance in one batch (CogVideoX, LTX, Mochi) the comparison uses a gate of this
file that decides jointly, on the same engine and span.

The hand-written references compute everything and exchange what a cache would have forecast. The
rest of the pipeline is theirs as well as ours.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import pytest
import torch
from diffusers import FirstBlockCacheConfig
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from skipstep.caching.abcache import ABCache
from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step
from skipstep.caching.deepcache import DeepCache
from skipstep.caching.easycache import EasyCache
from skipstep.caching.fbcache import FBCache
from skipstep.caching.fora import FORA
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.product import Cache
from skipstep.testing import Tiny, run, tiny_pipeline
from skipstep.testing.presets import lively

STEPS = 10
# Flux and HunyuanVideo have two stacks of blocks. diffusers keeps one residual across both, ours
# keeps one per stack, so sums are rounded in another order.
ACROSS_STACKS = 4e-6


@contextlib.contextmanager
def enabled(tiny: Tiny, plugin: Any) -> Iterator[Any]:
    """Switch a plugin on, and off again."""
    handle = tiny.pipe.enable_plugin(plugin)
    try:
        yield handle
    finally:
        handle.detach()


@contextlib.contextmanager
def native_first_block_cache(tiny: Tiny, threshold: float) -> Iterator[None]:
    """Switch on diffusers' own First Block Cache."""
    denoiser = getattr(tiny.pipe, tiny.denoiser)
    denoiser.enable_cache(FirstBlockCacheConfig(threshold=threshold))
    try:
        yield
    finally:
        denoiser.disable_cache()


@contextlib.contextmanager
def blocks_run(denoiser: nn.Module) -> Iterator[list[int]]:
    """Record which blocks ran, in order, by a linear layer in each.

    Hooks on the blocks themselves would also see the calls that diffusers answers from its cache.
    """
    ran: list[int] = []
    blocks = [b for c in denoiser.children() if isinstance(c, nn.ModuleList) for b in c]
    hooks = []
    for number, block in enumerate(blocks):
        layer = next(m for m in block.modules() if isinstance(m, nn.Linear))
        hooks.append(layer.register_forward_hook(lambda *_, n=number: ran.append(n)))
    try:
        yield ran
    finally:
        for hook in hooks:
            hook.remove()


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class JointGate(Gate[list[Tensor]]):
    """Decide as diffusers does: one distance for all rows together."""

    looks_at: ClassVar[LooksAt] = "first_block"
    type: Annotated[Literal["joint"], Field(description="Tag.")] = "joint"
    threshold: Annotated[float, Field(description="Largest change that is skipped.")] = 0.1

    def init(self, rows: int) -> list[Tensor]:
        """Return a state without a reference."""
        return []

    def decide(self, state: list[Tensor], step: Step, signal: Tensor | None) -> list[Choice]:
        """Compare all rows at once."""
        assert signal is not None
        if not state:
            return [Choice(True, "first")] * len(signal)
        distance = (signal - state[0]).abs().mean() / state[0].abs().mean()
        return [Choice(bool(distance > self.threshold), "joint")] * len(signal)

    def observe(self, state: list[Tensor], seen: Seen) -> None:
        """Keep the residual of the computed step."""
        assert seen.signal is not None
        state[:] = [seen.signal]


ONE_ROW: dict[str, dict[str, Any]] = {
    "wan": {},
    "qwenimage": {},
    "flux": {},
    "hunyuanvideo": {},
    "cogvideox": {"guidance_scale": 1.0},
    "ltx": {"guidance_scale": 1.0},
    "mochi": {"guidance_scale": 1.0},
}


def compare_with_native(
    family: str, plugin_of: Callable[[float], Any], over: dict[str, Any]
) -> None:
    """Run ours and diffusers' at one threshold; demand equal pictures and equal block calls."""
    tiny = tiny_pipeline(family)
    denoiser = getattr(tiny.pipe, tiny.denoiser)
    threshold = lively("fbcache", tiny, STEPS).threshold  # type: ignore[attr-defined]
    uncached = run(tiny, steps=STEPS, **over)
    with enabled(tiny, plugin_of(threshold)), blocks_run(denoiser) as ours:
        found = run(tiny, steps=STEPS, **over)
        marks = tiny.pipe.plugin_report().timeline()
    with native_first_block_cache(tiny, threshold), blocks_run(denoiser) as theirs:
        expected = run(tiny, steps=STEPS, **over)
    assert ours == theirs
    assert all("." in line and "#" in line[1:] for line in marks.values()), marks
    assert not torch.equal(found, uncached)
    if family in ("flux", "hunyuanvideo"):
        torch.testing.assert_close(found, expected, rtol=0, atol=ACROSS_STACKS)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("family", ONE_ROW)
def test_fbcache_equals_diffusers_first_block_cache(family: str) -> None:
    def plugin(threshold: float) -> FBCache:
        return FBCache(threshold=threshold, warmup_steps=1, final_steps=0)

    compare_with_native(family, plugin, ONE_ROW[family])


@pytest.mark.parametrize("family", ["cogvideox", "ltx", "mochi"])
def test_the_residual_span_equals_diffusers_when_the_decision_is_joint(family: str) -> None:
    def plugin(threshold: float) -> Cache:
        gate: Any = JointGate(threshold=threshold)
        return Cache(gate=gate, warmup_steps=1, final_steps=0, max_skips=None)

    compare_with_native(family, plugin, {})


@contextlib.contextmanager
def exchanged(module: nn.Module, function: Callable[..., Any]) -> Iterator[None]:
    """Let `function(original_forward, *args, **kwargs)` stand in for a module's forward."""
    original = module.forward
    module.forward = lambda *args, **kwargs: function(original, *args, **kwargs)
    try:
        yield
    finally:
        del module.forward


def computed_steps(warmup: int, interval: int, final: int) -> set[int]:
    """List the steps an interval cache computes: by hand, from its description."""
    steps = set(range(warmup)) | set(range(STEPS - final, STEPS))
    return steps | {i for i in range(warmup, STEPS) if (i - (warmup - 1)) % interval == 0}


def polynomial_at(times: Sequence[int], values: Sequence[Tensor], at: int) -> Tensor:
    """Evaluate the polynomial through the points by Neville's scheme, in float64."""
    column = [value.double() for value in values]
    for width in range(1, len(times)):
        column = [
            ((at - times[j + width]) * column[j] - (at - times[j]) * column[j + 1])
            / (times[j] - times[j + width])
            for j in range(len(times) - width)
        ]
    return column[0]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("family", ["pixart", "sdxl"])
def test_abcache_equals_a_loop_with_nevilles_scheme(family: str, order: int) -> None:
    tiny = tiny_pipeline(family)
    computes = computed_steps(warmup=3, interval=3, final=1)
    step, kept = [0], dict[int, Tensor]()

    def reference(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        value = output[0]
        if step[0] in computes:
            kept[step[0]] = value
        else:
            times = sorted(kept)[-order:]
            value = polynomial_at(times, [kept[t] for t in times], step[0]).float()
        step[0] += 1
        return (value,)

    with exchanged(getattr(tiny.pipe, tiny.denoiser), reference):
        expected = run(tiny, steps=STEPS)
    with enabled(tiny, ABCache(order=order, interval=3, warmup_steps=3, final_steps=1)):
        found = run(tiny, steps=STEPS)
    assert step[0] == STEPS
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_easycache_equals_a_loop_that_follows_the_paper() -> None:
    tiny = tiny_pipeline("flux")
    threshold = lively("easycache", tiny, STEPS).threshold  # type: ignore[attr-defined]
    state: dict[str, Any] = {"E": 0.0, "computed": [], "step": 0}

    def reference(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        x, i = kwargs["hidden_states"].clone(), state["step"]
        state["step"] = i + 1
        if "k" in state:  # known after two computed steps
            change = (x - state["x_before"]).abs().mean() / state["v"].abs().mean()
            state["E"] += float(state["k"] * change)
        state["x_before"] = x
        if 2 <= i < STEPS - 1 and "k" in state and state["E"] < threshold:
            return (x + (state["v"] - state["x"]),)
        v = original(*args, **kwargs)[0]
        if "v" in state:
            state["k"] = (v - state["v"]).abs().mean() / (x - state["x"]).abs().mean()
        state.update(v=v, x=x, E=0.0)
        state["computed"].append(i)
        return (v,)

    with exchanged(tiny.pipe.transformer, reference):
        expected = run(tiny, steps=STEPS)
    with enabled(tiny, EasyCache(threshold=threshold, warmup_steps=2, final_steps=1)) as handle:
        found = run(tiny, steps=STEPS)
        ours = [call.step for call in handle.report().calls if call.computed]
    assert ours == state["computed"]
    assert 2 < len(ours) < STEPS
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_fora_equals_repeating_every_modules_output_by_hand() -> None:
    tiny = tiny_pipeline("pixart")
    computes = computed_steps(warmup=2, interval=3, final=1)
    step = [-1]

    def count(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        return original(*args, **kwargs)

    def repeating() -> Callable[..., Any]:
        kept: list[Any] = []

        def reference(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = original(*args, **kwargs)
            if step[0] in computes:
                kept[:] = [output]
            return kept[0]

        return reference

    with contextlib.ExitStack() as stack:
        stack.enter_context(exchanged(tiny.pipe.transformer, count))
        for block in tiny.pipe.transformer.transformer_blocks:
            for module in (block.attn1, block.attn2, block.ff):
                stack.enter_context(exchanged(module, repeating()))
        expected = run(tiny, steps=STEPS)
    with enabled(tiny, FORA(interval=3, warmup_steps=2, final_steps=1)):
        found = run(tiny, steps=STEPS)
    assert step[0] == STEPS - 1
    assert torch.equal(found, expected)


def test_an_interval_over_residuals_equals_adding_them_by_hand() -> None:
    tiny = tiny_pipeline("pixart")
    computes = computed_steps(warmup=2, interval=3, final=1)
    blocks = tiny.pipe.transformer.transformer_blocks
    step, entered, kept = [-1], dict[str, Tensor](), dict[str, Tensor]()

    def first(original: Callable[..., Any], hidden_states: Tensor, *args: Any, **kw: Any) -> Any:
        step[0] += 1
        entered["h"] = hidden_states
        return original(hidden_states, *args, **kw)

    def last(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        if step[0] in computes:
            kept["delta"] = output - entered["h"]
            return output
        return entered["h"] + kept["delta"]

    with exchanged(blocks[0], first), exchanged(blocks[-1], last):
        expected = run(tiny, steps=STEPS)
    plugin = Cache(
        gate=IntervalGate(interval=3),
        warmup_steps=2,
        final_steps=1,
        max_skips=None,
    )
    with enabled(tiny, plugin):
        found = run(tiny, steps=STEPS)
    assert torch.equal(found, expected)


def test_deepcache_equals_exchanging_the_deep_features_by_hand() -> None:
    tiny = tiny_pipeline("sdxl")
    computes = computed_steps(warmup=1, interval=3, final=0)
    step, kept = [-1], dict[str, Tensor]()

    def outermost(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        if step[0] in computes:
            kept["deep"] = kwargs["hidden_states"]
        return original(*args, **{**kwargs, "hidden_states": kept["deep"]})

    with exchanged(tiny.pipe.unet.up_blocks[-1], outermost):
        expected = run(tiny, steps=STEPS)
    with enabled(tiny, DeepCache(interval=3)):
        found = run(tiny, steps=STEPS)
    assert step[0] == STEPS - 1
    assert torch.equal(found, expected)
