"""Growing gate: Spectrum's published rhythms, its rule step by step, and the uniform limit."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.caching.base import Step
from skipstep.caching.gates.growing import GrowingGate, growing_steps
from skipstep.caching.gates.interval import IntervalGate


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        (0.75, [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]),
        (3.0, [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]),
    ],
)
def test_fifty_steps_compute_the_papers_fourteen_and_ten(
    growth: float, expected: list[int]
) -> None:
    gate = GrowingGate(growth=growth, warmup_steps=5)
    assert [i for i in range(50) if gate.computes(Step(i, 50))] == expected


@settings(max_examples=100, deadline=None)
@given(
    window=st.floats(1, 6),
    growth=st.floats(0, 4),
    warmup=st.integers(1, 8),
    count=st.integers(1, 60),
)
def test_it_is_the_rule_about_skips_in_a_row(
    window: float, growth: float, warmup: int, count: int
) -> None:
    skips, now, expected = 0, window, []
    for index in range(count):
        if index < warmup:
            expected.append(index)
        elif (skips + 1) % math.floor(now) == 0:
            expected.append(index)
            skips, now = 0, now + growth
        else:
            skips += 1
    assert growing_steps(count, window=window, growth=growth, warmup_steps=warmup) == expected


@pytest.mark.parametrize(("window", "warmup"), [(1, 1), (3, 1), (4, 3)])
def test_no_growth_is_the_interval_gate(window: int, warmup: int) -> None:
    growing = GrowingGate(window=window, growth=0, warmup_steps=warmup)
    interval = IntervalGate(interval=window, warmup_steps=warmup)
    for i in range(30):
        assert growing.computes(Step(i, 30)) == interval.computes(Step(i, 30))


def test_all_rows_are_told_the_same() -> None:
    gate = GrowingGate(warmup_steps=2)
    choices = gate.decide(gate.init(3), Step(2, 10), None)
    assert len(choices) == 3 and {(c.compute, c.why) for c in choices} == {(False, "interval")}


@pytest.mark.parametrize("options", [{"window": 0.5}, {"growth": -1}, {"warmup_steps": 0}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        GrowingGate(**options)  # type: ignore[arg-type]
