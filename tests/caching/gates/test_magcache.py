"""MagCache's gate: equality with a plain loop, thresholds, other run lengths."""

import pytest
import torch

from skipstep.caching.base import Seen, Step
from skipstep.caching.gates.magcache import MagCacheGate, MagnitudeRatios

RATIOS = (1.0, 1.2, 1.1, 1.05, 1.02, 0.99, 0.98, 1.0, 0.97, 0.95, 0.9, 0.85)


def play(gate: MagCacheGate, count: int, rows: int = 1) -> list[int]:
    state, computed = gate.init(rows), []
    for index in range(count):
        step = Step(index, count)
        choices = gate.decide(state, step, None)
        assert all(choice == choices[0] for choice in choices)
        if index == 0 or choices[0].compute:
            computed.append(index)
            gate.observe(state, Seen(step, list(range(rows)), None, torch.zeros(rows, 1)))
    return computed


@pytest.mark.parametrize("threshold", [0.01, 0.06, 0.12, 0.3])
def test_equals_a_plain_loop(threshold: float) -> None:
    expected, rho, e = [], 1.0, 0.0
    for i, r in enumerate(RATIOS):
        rho *= r
        e += abs(1 - rho)
        if i == 0 or e >= threshold:
            expected.append(i)
            rho, e = 1.0, 0.0
    gate = MagCacheGate(ratios=MagnitudeRatios(ratios=RATIOS), threshold=threshold)
    assert play(gate, len(RATIOS)) == play(gate, len(RATIOS), rows=3) == expected
    assert len(expected) > 1 or threshold == 0.3


def test_threshold_zero_never_skips_even_when_no_magnitude_moves() -> None:
    still = MagnitudeRatios(ratios=(1.0,) * 8)
    assert play(MagCacheGate(ratios=still, threshold=0), 8) == list(range(8))
    assert play(MagCacheGate(ratios=still, threshold=0.001), 8) == [0]


def test_a_larger_threshold_never_computes_more() -> None:
    ratios = MagnitudeRatios(ratios=RATIOS)
    counts = [
        len(play(MagCacheGate(ratios=ratios, threshold=t), 12)) for t in (0, 0.02, 0.1, 0.4, 5)
    ]
    assert counts == sorted(counts, reverse=True) and counts[0] == 12 and counts[-1] == 1


def test_rows_that_are_computed_apart_drift_apart() -> None:
    gate = MagCacheGate(ratios=MagnitudeRatios(ratios=RATIOS), threshold=0.5)
    state = gate.init(2)
    gate.decide(state, Step(1, 12), None)
    gate.observe(state, Seen(Step(1, 12), [1], None, torch.zeros(1, 1)))
    row0, row1 = gate.decide(state, Step(2, 12), None)
    assert row0.value == pytest.approx(0.2 + abs(1 - 1.2 * 1.1))
    assert row1.value == pytest.approx(0.1)


def test_another_run_length_takes_the_nearest_calibrated_step() -> None:
    ratios = MagnitudeRatios(ratios=(1.0, 1.1, 1.2, 1.3, 1.4))
    assert [ratios.at(Step(i, 3)) for i in range(3)] == [1.0, 1.2, 1.4]
    assert [ratios.at(Step(i, 5)) for i in range(5)] == list(ratios.ratios)
    assert [ratios.at(Step(i, 9)) for i in (0, 8)] == [1.0, 1.4]
    assert ratios.at(Step(0, 1)) == 1.0
