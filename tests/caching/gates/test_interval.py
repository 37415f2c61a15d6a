"""Interval gate: the uniform rhythm, the centred one, and bounds."""

import math

import pytest
import torch

from skipstep.caching.base import Step
from skipstep.caching.gates.interval import IntervalGate, centred_steps, is_on_interval


@pytest.mark.parametrize("interval", [1, 2, 3, 5])
@pytest.mark.parametrize("warmup", [1, 2, 4])
def test_uniform_computes_n_steps_after_the_last_computed_one(interval: int, warmup: int) -> None:
    last = 0
    for index in range(50):
        expected = index < warmup or index - last == interval
        assert is_on_interval(index, interval=interval, warmup_steps=warmup) == expected
        if expected:
            last = index


def test_warmup_of_one_is_every_index_divisible_by_n() -> None:
    gate = IntervalGate(interval=3, warmup_steps=1)
    on = [i for i in range(20) if gate.computes(Step(i, 20))]
    assert on == [0, 3, 6, 9, 12, 15, 18]


def test_interval_one_computes_everything() -> None:
    for gate in (IntervalGate(interval=1), IntervalGate(interval=1, center=0.4)):
        assert all(gate.computes(Step(i, 21)) for i in range(21))


def test_all_rows_share_the_choice() -> None:
    gate = IntervalGate(interval=2)
    choices = gate.decide(gate.init(3), Step(1, 4), torch.zeros(3, 1))
    assert [(c.compute, c.why) for c in choices] == [(False, "interval")] * 3


@pytest.mark.parametrize("count", [1, 7, 20, 50])
@pytest.mark.parametrize("interval", [1, 2, 5, 60])
@pytest.mark.parametrize("center", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("power", [1.0, 1.4, 3.0])
def test_centred_steps_start_at_zero_stay_in_the_run_and_cost_no_more(
    count: int, interval: int, center: float, power: float
) -> None:
    steps = centred_steps(count, interval=interval, center=center, power=power)
    assert steps[0] == 0 and steps[-1] < count and steps == sorted(set(steps))
    assert len(steps) <= math.ceil(count / interval)


@pytest.mark.parametrize("center", [0.0, 0.25, 0.3, 0.7])
def test_power_one_is_uniform(center: float) -> None:
    assert centred_steps(60, interval=5, center=center, power=1.0) == list(range(0, 60, 5))


def test_computed_steps_gather_around_the_center() -> None:
    steps = centred_steps(50, interval=5, center=0.3, power=1.4)
    gaps = [b - a for a, b in zip(steps, steps[1:], strict=False)]
    nearest = min(range(len(gaps)), key=lambda j: abs((steps[j] + steps[j + 1]) / 2 - 15))
    assert gaps[nearest] == min(gaps) < gaps[0] and gaps[nearest] < gaps[-1]


def test_values_follow_the_closed_form() -> None:
    # K = 5 values of sp(x, 2) + 10 for x from -sqrt(10) in steps of 2 sqrt(10) / 5.
    assert centred_steps(20, interval=4, center=0.5, power=2.0) == [0, 6, 9, 10, 13]


@pytest.mark.parametrize("options", [{"interval": 0}, {"center": 1.5}, {"power": 0.5}, {"n": 3}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        IntervalGate(**options)  # type: ignore[arg-type]
