"""Schedule gate: the listed steps, and runs of another length."""

import logging

import pytest

from skipstep.caching.base import Step
from skipstep.caching.gates.schedule import Schedule, ScheduleGate, nearest_step

COMPUTE = (0, 1, 2, 5, 9, 14)


def on(gate: ScheduleGate, count: int) -> list[int]:
    state = gate.init(2)
    choices = [gate.decide(state, Step(i, count), None) for i in range(count)]
    assert all(a == b and a.why == "schedule" for a, b in choices)
    return [i for i, (a, _) in enumerate(choices) if a.compute]


def test_the_listed_steps_are_computed() -> None:
    assert on(ScheduleGate(schedule=Schedule(steps=20, compute=COMPUTE)), 20) == list(COMPUTE)


def test_another_number_of_steps_is_an_error_by_default() -> None:
    gate = ScheduleGate(schedule=Schedule(steps=20, compute=COMPUTE))
    with pytest.raises(ValueError, match="for 20 steps and this run has 30; run 20 steps or set"):
        on(gate, 30)
    assert gate.mismatch(20) is None and "this run has 30" in (gate.mismatch(30) or "")


def test_nearest_steps_are_taken_with_one_warning_per_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gate = ScheduleGate(schedule=Schedule(steps=20, compute=COMPUTE), on_mismatch="warn")
    with caplog.at_level(logging.WARNING):
        computed = on(gate, 39)
    # 38 = 2 * 19: step i stands for step i / 2; halves go to the even neighbour.
    assert computed == [i for i in range(39) if round(i / 2) in COMPUTE]
    assert len(caplog.records) == 1
    on(gate, 39)
    assert len(caplog.records) == 2


@pytest.mark.parametrize("made_for", [1, 2, 7, 28])
@pytest.mark.parametrize("count", [1, 2, 5, 28, 50])
def test_nearest_steps_ascend_from_first_to_last(made_for: int, count: int) -> None:
    steps = [nearest_step(i, count, made_for) for i in range(count)]
    assert steps == sorted(steps) and steps[0] == 0
    assert count == 1 or steps[-1] == made_for - 1
    assert made_for != count or steps == list(range(count))


def test_unknown_answers_to_a_mismatch_are_refused() -> None:
    with pytest.raises(ValueError, match="on_mismatch"):
        ScheduleGate(
            schedule=Schedule(steps=2, compute=(0,)),
            on_mismatch="ignore",  # type: ignore[arg-type]
        )
