"""Planned schedules: the best of all, on the errors that a run really makes."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.caching.base import Forecaster
from skipstep.caching.forecasters.fitted import Fitted
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.schedule import Schedule
from skipstep.caching.history import History
from skipstep.caching.schedule_plan import (
    Objective,
    fitted_weights,
    forecast_errors,
    path_error,
    plan_schedule,
    plan_schedules,
)

LINE, PARABOLA = Lagrange(order=2), Lagrange(order=3)
FORECASTERS: list[Forecaster] = [Reuse(), LINE, Taylor(order=1), PARABOLA, Fitted()]
OBJECTIVES: list[Objective] = ["sum", "squares", "minimax"]


def grams_of(features: torch.Tensor) -> torch.Tensor:
    """Multiply the features [n, t, d] of n trajectories."""
    return features.double() @ features.double().mT


def wander(seed: int, steps: int, trajectories: int = 2) -> torch.Tensor:
    """Make features that change smoothly, and by uneven amounts."""
    generator = torch.Generator().manual_seed(seed)
    jumps = torch.randn(trajectories, steps, 6, generator=generator)
    return jumps.cumsum(1).cumsum(1) + torch.randn(trajectories, steps, 6, generator=generator)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(1, 7),
    forecaster=st.sampled_from(FORECASTERS),
    objective=st.sampled_from(OBJECTIVES),
    is_weighted=st.booleans(),
    data=st.data(),
)
def test_the_plan_is_the_best_of_all_schedules(
    seed: int,
    steps: int,
    forecaster: Forecaster,
    objective: Objective,
    is_weighted: bool,
    data: Any,
) -> None:
    count = data.draw(st.integers(1, steps))
    grams = grams_of(wander(seed, steps))
    weights = np.random.default_rng(seed).uniform(0.2, 5, steps).tolist() if is_weighted else None
    options: dict[str, Any] = {"objective": objective, "weights": weights}
    every = [
        (0, *rest)
        for used in range(count)
        for rest in itertools.combinations(range(1, steps), used)
    ]
    errors = [path_error(grams, each, forecaster, **options) for each in every]
    found = plan_schedule(grams, count, forecaster, **options)
    assert found in every
    assert path_error(grams, found, forecaster, **options) == pytest.approx(min(errors), abs=1e-9)


@settings(max_examples=10)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 6))
def test_of_schedules_with_one_maximum_the_one_with_the_smallest_sum_is_planned(
    seed: int, count: int
) -> None:
    grams, forecaster = grams_of(wander(seed, 7)), Lagrange(order=2)
    found = plan_schedule(grams, count, forecaster, objective="minimax")
    largest = path_error(grams, found, forecaster, objective="minimax")
    sums = [
        path_error(grams, (0, *rest), forecaster)
        for used in range(count)
        for rest in itertools.combinations(range(1, 7), used)
        if path_error(grams, (0, *rest), forecaster, objective="minimax") <= largest
    ]
    assert path_error(grams, found, forecaster) == pytest.approx(min(sums))


@settings(max_examples=10)
@given(
    seed=st.integers(0, 10_000),
    steps=st.integers(2, 11),
    forecaster=st.sampled_from(FORECASTERS),
    objective=st.sampled_from(OBJECTIVES),
)
def test_a_larger_budget_never_plans_a_larger_error(
    seed: int, steps: int, forecaster: Forecaster, objective: Objective
) -> None:
    grams = grams_of(wander(seed, steps))
    counts = range(1, steps + 1)
    plans = plan_schedules(grams, counts, forecaster, objective=objective)
    errors = [path_error(grams, plans[c], forecaster, objective=objective) for c in counts]
    assert all(later <= before for before, later in itertools.pairwise(errors))
    assert all(len(plans[c]) <= c and plans[c][0] == 0 for c in counts)
    assert plans[steps] == tuple(range(steps))


@pytest.mark.parametrize(("forecaster", "degree"), [(Lagrange(order=2), 1), (Lagrange(order=3), 2)])
def test_a_polynomial_is_planned_with_as_many_steps_as_it_takes(
    forecaster: Forecaster, degree: int
) -> None:
    powers = torch.arange(12.0).unsqueeze(1) ** torch.arange(degree + 1.0)
    grams = grams_of((powers @ torch.randn(degree + 1, 5)).unsqueeze(0))
    found = plan_schedule(grams, degree + 1, forecaster, objective="squares")
    assert path_error(grams, found, forecaster) < 1e-3 * grams.diagonal(dim1=1, dim2=2).sum() ** 0.5


def test_steps_are_planned_where_the_feature_moves() -> None:
    still, moving = torch.zeros(1, 10, 4), torch.randn(1, 6, 4).cumsum(1)
    features = torch.cat([still[:, :6], moving, moving[:, -1:].expand(1, 8, 4)], dim=1)
    assert plan_schedule(grams_of(features), 7, Reuse()) == (0, 6, 7, 8, 9, 10, 11)


@pytest.mark.parametrize("forecaster", FORECASTERS, ids=repr)
def test_errors_are_those_of_the_forecasts_that_a_run_makes(forecaster: Forecaster) -> None:
    features, schedule = wander(3, 9), (0, 1, 3, 7)
    grams = grams_of(features)
    as_run = forecaster
    if isinstance(forecaster, Fitted):
        planned = Schedule(steps=9, compute=schedule)
        weights = fitted_weights(grams, planned, forecaster)
        as_run = replace(forecaster, schedule=replace(planned, weights=weights))
    expected: dict[int, float] = {}
    history = History(2, forecaster.anchors)
    for k in range(9):
        if k in schedule:
            history.push(features[:, k], [0, 1], k)
        else:
            off = history.forecast(as_run, [0, 1], k) - features[:, k]
            expected[k] = float(off.square().sum(1).mean().sqrt())
    for k, error in expected.items():
        anchors = [a for a in reversed(schedule) if a < k][: forecaster.anchors]
        torch.testing.assert_close(
            forecast_errors(grams, forecaster, anchors, [k]),
            torch.tensor([error], dtype=torch.float64),
            rtol=1e-4,
            atol=1e-5,
        )
    assert path_error(grams, schedule, forecaster) == pytest.approx(sum(expected.values()), 1e-4)


def test_what_cannot_be_planned_is_refused() -> None:
    grams = grams_of(wander(0, 5))
    for count in (0, 6):
        with pytest.raises(ValueError, match=f"count={count} is not allowed: a run of 5"):
            plan_schedule(grams, count, Reuse())
    with pytest.raises(ValueError, match="5 positive numbers"):
        plan_schedule(grams, 2, Reuse(), weights=[1, 1, 1])
    with pytest.raises(ValueError, match="5 positive numbers"):
        plan_schedule(grams, 2, Reuse(), weights=[1, 1, 1, 1, 0])
    with pytest.raises(ValueError, match="not finite"):
        plan_schedule(grams * float("nan"), 2, Reuse())


@pytest.mark.usefixtures("as_users_see_it")
def test_grams_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="trajectories, t, t"):
        plan_schedule(grams_of(wander(0, 5))[:, :3], 2, Reuse())
