"""Layers: each module's own choice, equal to a loop written here, sample by sample."""

import contextlib
from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.caching.foresight import Foresight
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.product import Cache
from skipstep.caching.spans.modules import Modules
from skipstep.plugins.errors import Incompatible
from skipstep.testing import run, tiny_pipeline
from tests.test_oracles import computed_steps, enabled, exchanged

STEPS = 10
TOLERANCE = 0.6
COMPUTES = computed_steps(warmup=3, interval=4, final=0)


def foresight(tolerance: float) -> Foresight:
    """Build the rhythm of COMPUTES."""
    return Foresight(warmup_steps=3, interval=4, tolerance=tolerance)


def by_hand(step: list[int], ran: list[int]) -> Any:
    """Return one module's rule as a loop over samples."""
    kept = dict[int, Tensor]()
    delta, limit = dict[int, float](), dict[int, float]()

    def reference(original: Any, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = original(*args, **kwargs)
        rows = []
        for row, new in enumerate(output):
            is_due = step[0] in COMPUTES or not delta[row] <= TOLERANCE * limit[row]
            if is_due:
                ran.append(row)
                if row in kept:
                    delta[row] = float((new - kept[row]).square().mean())
                    if step[0] < 3:
                        limit[row] = limit.get(row, 0.0) / 10 + delta[row]
                kept[row] = new
            rows.append(kept[row])
        return torch.stack(rows)

    return reference


@pytest.mark.parametrize("batch", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_foresight_equals_a_loop_over_modules_and_samples_by_hand(batch: int) -> None:
    tiny = tiny_pipeline("pixart")
    step, ran = [-1], list[int]()

    def count(original: Any, *args: Any, **kwargs: Any) -> Any:
        step[0] += 1
        return original(*args, **kwargs)

    modules = [
        module
        for block in tiny.pipe.transformer.transformer_blocks
        for module in (block.attn1, block.attn2, block.ff)
    ]
    with contextlib.ExitStack() as stack:
        stack.enter_context(exchanged(tiny.pipe.transformer, count))
        for module in modules:
            stack.enter_context(exchanged(module, by_hand(step, ran)))
        expected = run(tiny, steps=STEPS, batch=batch)
    with enabled(tiny, foresight(TOLERANCE)) as handle:
        found = run(tiny, steps=STEPS, batch=batch)
        report = handle.report()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    rows = 2 * batch  # guidance doubles the batch
    assert report.fraction == pytest.approx(len(ran) / (rows * STEPS * len(modules)))
    least = len(COMPUTES) / STEPS
    assert least < report.fraction < 1, "some modules repeat on a skip and some do not"


def test_without_tolerance_everything_is_computed_and_with_much_of_it_nothing() -> None:
    tiny = tiny_pipeline("pixart")
    plain = run(tiny, steps=STEPS)
    with enabled(tiny, foresight(0.0)):
        assert torch.equal(run(tiny, steps=STEPS), plain)
    with enabled(tiny, foresight(1000.0)):
        found = run(tiny, steps=STEPS)
    gate = IntervalGate(interval=4)
    fora = Cache(gate=gate, span=Modules(), warmup_steps=3, final_steps=0, max_skips=None)
    with enabled(tiny, fora):
        assert torch.equal(run(tiny, steps=STEPS), found)


def test_gates_that_look_inside_are_refused() -> None:
    tiny = tiny_pipeline("pixart")
    options: dict[str, Any] = {"gate": "first_block", "span": "layers"}
    with pytest.raises(Incompatible, match="which span 'layers' does not watch"):
        tiny.pipe.enable_plugin(Cache(**options))
