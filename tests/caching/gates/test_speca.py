"""SpeCa's gate: the last block checks forecasts, and what it finds decides the next step."""

from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.caching.base import Seen, Step
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.speca import SpeCaGate
from skipstep.caching.product import Cache
from skipstep.caching.spans.residual import Residual
from skipstep.caching.speca import SpeCa
from skipstep.plugins.errors import Incompatible
from skipstep.testing import run, tiny_pipeline
from tests.test_oracles import enabled

torch.set_num_threads(1)
STEPS = 8


def test_a_row_is_computed_behind_an_error_above_its_tolerance() -> None:
    gate = SpeCaGate(threshold=0.4, decay=0.25, floor=0.15)
    state = gate.init(3)
    gate.verify(state, [0, 2], [0.3, float("nan")])
    early, late = Step(0, 11), Step(10, 11)
    assert [c.compute for c in gate.decide(state, early, None)] == [False, False, True]
    assert [c.compute for c in gate.decide(state, late, None)] == [True, False, True]
    assert gate.decide(state, late, None)[0].threshold == pytest.approx(0.15)
    x = torch.zeros(1, 1)
    gate.observe(state, Seen(late, [0], None, x))
    assert [c.compute for c in gate.decide(state, late, None)] == [False, False, True]


def test_without_a_known_length_the_tolerance_stays() -> None:
    gate = SpeCaGate(threshold=0.4, decay=0.25)
    assert gate.tolerance(Step(7, 0)) == 0.4


@pytest.mark.parametrize("family", ["pixart", "sd3", "wan"])
def test_the_error_is_that_of_the_last_block_run_on_the_forecast(family: str) -> None:
    """Reuse forecasts what the block added before, so the error can be computed beside it."""
    tiny = tiny_pipeline(family)
    denoiser = getattr(tiny.pipe, tiny.denoiser)
    stacks = [m for m in denoiser.children() if isinstance(m, torch.nn.ModuleList) and len(m) > 1]
    added: list[Tensor] = []

    def note(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        before = args[0] if args else kwargs["hidden_states"]
        after = output if isinstance(output, Tensor) else output[-1]
        added.append((after - before).clone())

    hook = stacks[-1][-1].register_forward_hook(note, with_kwargs=True)
    gate = SpeCaGate(threshold=1e9, decay=1.0)
    plugin = Cache(
        gate=gate, forecaster=Reuse(), span=Residual(last_blocks=1), warmup_steps=2, final_steps=0
    )
    with enabled(tiny, plugin) as handle:
        run(tiny, steps=6)
        report = handle.report()
    hook.remove()
    calls = [call for call in report.calls if call.branch == 0]
    assert len(calls) == 6 and report.fraction < 1
    branches = len(added) // 6
    mine = added[::branches]
    for step in (3, 4, 5):
        value = calls[step].choices[0].value
        if calls[step - 1].computed or value is None:
            continue
        last = max(i for i in range(step - 1) if calls[i].computed)
        errors = (mine[last] - mine[step - 1]).abs().flatten(1).mean(1)
        expected = errors / mine[step - 1].abs().flatten(1).mean(1)
        assert value == pytest.approx(float(expected[0]), rel=1e-4)


def test_a_smaller_threshold_computes_more_and_a_large_one_ends_at_the_limit() -> None:
    tiny = tiny_pipeline("pixart")
    fractions = []
    for threshold in (1e-6, 0.5, 1e6):
        plugin = SpeCa(threshold=threshold, decay=1, floor=0, warmup_steps=2, max_skips=3)
        with enabled(tiny, plugin) as handle:
            run(tiny, steps=STEPS)
            fractions.append(handle.report().fraction)
    blocks = 4
    every_other = (2 + 3 + 3 / blocks) / STEPS  # a skip is always tried behind a computed step
    assert fractions[0] == pytest.approx(every_other)
    assert fractions[0] >= fractions[1] >= fractions[2]
    computed = [0, 1, 5]
    assert fractions[2] == pytest.approx((len(computed) + 5 / blocks) / STEPS)


@pytest.mark.parametrize(
    "span", ["output", "modules", Residual(), Residual(last_blocks=1, swap_at=0.5)]
)
def test_a_span_that_cannot_check_is_refused_in_words(span: Any) -> None:
    tiny = tiny_pipeline("pixart")
    with pytest.raises((ValueError, Incompatible), match="checks forecasts at the last block"):
        tiny.pipe.enable_plugin("cache", gate="speca", span=span)
