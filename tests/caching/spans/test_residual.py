"""Ranges of blocks: which blocks run, equal to loops written here, and refusals."""

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from skipstep.caching.deltadit import DeltaDiT
from skipstep.caching.gates.first_block import FirstBlockGate
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.product import Cache
from skipstep.caching.spans.residual import Residual
from skipstep.plugins.errors import Incompatible
from skipstep.testing import run, tiny_pipeline
from tests.test_oracles import blocks_run, computed_steps, enabled, exchanged

STEPS = 10
COMPUTES = computed_steps(warmup=2, interval=3, final=1)


def interval_over(span: Residual, **options: Any) -> Cache:
    """Build the rhythm of COMPUTES over a span."""
    gate = IntervalGate(interval=3)
    return Cache(gate=gate, warmup_steps=2, final_steps=1, max_skips=None, span=span, **options)


def watched(span: Residual, threshold: float, front: int = 1, **options: Any) -> Cache:
    """Build First Block Cache over a span, its gate behind the first `front` blocks."""
    gate = FirstBlockGate(threshold=threshold, front=front)
    return Cache(gate=gate, warmup_steps=2, final_steps=0, max_skips=None, span=span, **options)


@pytest.mark.parametrize("family", ["pixart", "flux", "sd3", "cogvideox"])
@pytest.mark.parametrize("counts", [(1, 0), (0, 1), (1, 1), (0, 3), (3, 0), (2, 1)])
def test_only_the_blocks_of_the_range_are_skipped(family: str, counts: tuple[int, int]) -> None:
    """Flux has two lists of two blocks: its ranges cross from one into the other, or leave one."""
    tiny = tiny_pipeline(family)
    first, last = counts
    with (
        enabled(tiny, interval_over(Residual(first_blocks=first, last_blocks=last))),
        blocks_run(getattr(tiny.pipe, tiny.denoiser)) as ran,
    ):
        run(tiny, steps=STEPS)
        report = tiny.pipe.plugin_report()
    kept = [*range(first), *range(4 - last, 4)]
    expected = [b for i in range(STEPS) for b in (range(4) if i in COMPUTES else kept)]
    assert ran == expected
    assert report.fraction == pytest.approx(len(expected) / (4 * STEPS))
    assert report.notes == []


def test_a_range_equals_exchanging_its_residual_by_hand() -> None:
    tiny = tiny_pipeline("pixart")
    blocks = tiny.pipe.transformer.transformer_blocks
    step, entered, kept = [-1], dict[str, Tensor](), dict[str, Tensor]()

    def count(original: Any, *args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        return original(*args, **kwargs)

    def enter(original: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        entered["h"] = hidden_states
        return original(hidden_states, *args, **kwargs)

    def leave(original: Any, *args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        if step[0] in COMPUTES:
            kept["delta"] = output - entered["h"]
            return output
        return entered["h"] + kept["delta"]

    with (
        exchanged(tiny.pipe.transformer, count),
        exchanged(blocks[1], enter),
        exchanged(blocks[2], leave),
    ):
        expected = run(tiny, steps=STEPS)
    with enabled(tiny, interval_over(Residual(first_blocks=1, last_blocks=1))):
        found = run(tiny, steps=STEPS)
    assert step[0] == STEPS - 1
    assert torch.equal(found, expected)


def test_the_whole_range_is_what_the_span_was_without_counts() -> None:
    """A first block that always runs is what First Block Cache has anyway."""
    tiny = tiny_pipeline("sd3")
    pictures = []
    for first in (0, 1):
        with enabled(tiny, watched(Residual(first_blocks=first), 0.3)):
            pictures.append(run(tiny, steps=STEPS, batch=2))
    assert torch.equal(*pictures)


@pytest.mark.parametrize("family", ["pixart", "cogvideox"])
def test_a_gate_sees_the_residual_of_all_the_first_blocks(family: str) -> None:
    tiny = tiny_pipeline(family)
    blocks = getattr(tiny.pipe, tiny.denoiser).transformer_blocks
    entered: list[Tensor] = []
    seen: list[Tensor] = []
    hooks = [
        blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: entered.append((*args, *kwargs.values())[0]), with_kwargs=True
        ),
        blocks[1].register_forward_hook(
            lambda _, __, out: seen.append(
                (out[0] if isinstance(out, tuple) else out) - entered[-1]
            )
        ),
    ]
    plugin = watched(Residual(), 0.0, front=2)
    with enabled(tiny, plugin) as handle:
        run(tiny, steps=4, guidance_scale=1.0)
        values = [call.choices[0].value for call in handle.report().calls]
    for hook in hooks:
        hook.remove()
    expected = [
        float((now - before).abs().mean() / before.abs().mean())
        for before, now in zip(seen, seen[1:], strict=False)
    ]
    assert values[0] is None
    assert values[1:] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"last_blocks": 1}])
def test_samples_that_disagree_run_the_first_blocks_once_and_equal_single_runs(
    options: dict[str, Any],
) -> None:
    tiny = tiny_pipeline("pixart")
    over: dict[str, Any] = {"guidance_scale": 1.0}
    with enabled(tiny, watched(Residual(**options), 0.0, front=2)) as handle:
        run(tiny, steps=8, batch=4, **over)
        values = sorted(c.value or 0.0 for c in handle.report().calls[2].choices)
    middle = (values[1] + values[2]) / 2
    with (
        enabled(tiny, watched(Residual(**options), middle, front=2)) as handle,
        blocks_run(tiny.pipe.transformer) as ran,
    ):
        batch = run(tiny, steps=8, batch=4, **over)
        report = handle.report()
        split = [call for call in report.calls if 0 < call.computed < 4]
        per_block = [ran.count(number) for number in range(4)]
        singles = torch.cat([run(tiny, steps=8, seed=seed, **over) for seed in range(4)])
    assert split
    assert per_block[:2] == [8, 8]
    torch.testing.assert_close(batch, singles, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["pixart", "flux", "wan"])
def test_delta_dit_skips_the_rear_then_the_front(family: str) -> None:
    tiny = tiny_pipeline(family)
    plugin = DeltaDiT(interval=3, kept_blocks=1, boundary=0.5, warmup_steps=1, final_steps=0)
    with (
        enabled(tiny, plugin) as handle,
        blocks_run(getattr(tiny.pipe, tiny.denoiser)) as ran,
    ):
        first = run(tiny, steps=12)
        report = handle.report()
        calls, n = list(ran), 2 if tiny.guidance == "sequential" else 1
        again = run(tiny, steps=12)
    # Steps 0, 3, 9 by rhythm; 6 is on the rhythm and the boundary too.
    computed = {0, 3, 6, 9}
    rhythm = [range(4) if i in computed else [0] if i < 6 else [3] for i in range(12)]
    assert calls == [block for blocks in rhythm for _ in range(n) for block in blocks]
    assert report.fraction == pytest.approx(len(calls) / (12 * 4 * n))
    assert torch.equal(first, again)


def test_the_first_step_behind_the_boundary_is_computed_off_the_rhythm() -> None:
    tiny = tiny_pipeline("pixart")
    with enabled(tiny, DeltaDiT(interval=4, kept_blocks=1, boundary=0.5, final_steps=0)) as handle:
        run(tiny, steps=12)
        report = handle.report()
    assert report.timeline() == {"transformer": "##...##..#.."}
    assert report.calls[6].choices[0].why == "first"


def test_a_range_saves_the_flops_of_its_own_blocks() -> None:
    tiny = tiny_pipeline("flux")  # its blocks differ in cost
    costs = []
    for first, last in ((0, 2), (2, 0)):
        with enabled(tiny, interval_over(Residual(first_blocks=first, last_blocks=last))) as handle:
            run(tiny, steps=STEPS)
            report = handle.report()
        assert report.flops_full is not None and report.flops_done is not None
        costs.append(report.flops_full - report.flops_done)
        full = report.flops_full
    with enabled(tiny, interval_over(Residual())) as handle:
        run(tiny, steps=STEPS)
        both = handle.report()
    assert costs[0] != costs[1]
    assert both.flops_full - both.flops_done == pytest.approx(sum(costs))
    assert sum(costs) < full


def test_what_is_added_between_the_blocks_is_not_cached() -> None:
    """Flux's own argument for ControlNets adds a tensor behind each block of its first list."""
    tiny = tiny_pipeline("flux")
    transformer = tiny.pipe.transformer
    step, entered, kept = [-1], dict[str, Tensor](), dict[str, Tensor]()

    def control(original: Any, *args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        extra = torch.full_like(kwargs["hidden_states"][..., :1], float(step[0])).expand(-1, -1, 32)
        return original(*args, **kwargs, controlnet_block_samples=[extra, extra])

    def enter(original: Any, *args: Any, **kwargs: Any) -> Any:
        entered.update(kwargs)
        return original(*args, **kwargs)

    def leave(original: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = original(*args, **kwargs)
        names = ("encoder_hidden_states", "hidden_states")
        extra = {"encoder_hidden_states": 0.0, "hidden_states": float(step[0])}
        if step[0] in COMPUTES:
            for name, output in zip(names, outputs, strict=True):
                kept[name] = output - entered[name] - extra[name]
            return outputs
        return tuple(entered[name] + extra[name] + kept[name] for name in names)

    blocks = transformer.transformer_blocks
    with exchanged(transformer, control):
        with exchanged(blocks[0], enter), exchanged(blocks[1], leave):
            expected = run(tiny, steps=STEPS)
        step[0] = -1
        with enabled(tiny, interval_over(Residual(last_blocks=2))) as handle:
            found = run(tiny, steps=STEPS)
            fraction = handle.report().fraction
    assert fraction < 1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("pixart", {"first_blocks": 4}, "leave nothing to skip: PixArtTransformer2DModel has 4"),
        ("pixart", {"first_blocks": 2, "last_blocks": 2}, "first_blocks=2 and last_blocks=2"),
        ("flux", {"front": 2}, "decides behind 2 blocks, which must be fewer than the 2"),
        ("sdxl", {"first_blocks": 1}, "is a UNet"),
    ],
)
def test_ranges_that_cannot_be_are_refused(
    family: str, options: dict[str, Any], words: str
) -> None:
    tiny = tiny_pipeline(family)
    front = options.get("front", 1)
    span = Residual(**{name: value for name, value in options.items() if name != "front"})
    with pytest.raises(Incompatible, match=words):
        tiny.pipe.enable_plugin(watched(span, 0.1, front=front))


@pytest.mark.parametrize("options", [{"first_blocks": -1}, {"last_blocks": 1.5}, {"swap_at": 1.0}])
def test_counts_and_boundary_are_bounded(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        Residual(**options)
