"""Fitted weights: no forecast from the same values errs less on what they were fitted to."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.caching.forecasters.damped import noise_gain
from skipstep.caching.forecasters.fitted import HALF_A_LINE, Fitted, fit_weights
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.gates.schedule import Schedule
from skipstep.caching.schedule_plan import fitted_weights, forecast_errors

WEIGHTS = ((1.0,), (1.5, -0.5), (1.4, -0.6, 0.2))
PLANNED = Schedule(steps=6, compute=(0, 2, 4), weights=WEIGHTS)


def grams(seed: int, steps: int) -> torch.Tensor:
    """Return the scalar products of two runs that change by uneven amounts."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(2, steps, 5, generator=generator, dtype=torch.float64).cumsum(1)
    return features @ features.mT


@settings(max_examples=25)
@given(seed=st.integers(0, 9999), anchors=st.sampled_from([(0,), (2, 0), (3, 2, 0), (3, 2, 1)]))
def test_nothing_linear_in_the_same_values_errs_less(seed: int, anchors: tuple[int, ...]) -> None:
    found, later = grams(seed, 7), [4, 5, 6]
    least = forecast_errors(found, Fitted(noise=0), anchors, later)
    for other in (HALF_A_LINE, Lagrange(order=3), Fitted(noise=0.3)):
        assert (least <= forecast_errors(found, other, anchors, later) + 1e-9).all()


def test_noise_shrinks_the_weights() -> None:
    gram = grams(0, 7).mean(0)
    gains = [
        noise_gain(fit_weights(gram, [3, 2, 1], [6], noise=noise)[0].tolist())
        for noise in (0.0, 0.03, 0.3, 1.0)
    ]
    assert gains == sorted(gains, reverse=True) and gains[0] > 1.5 * gains[-1]


def test_equal_values_share_one_weight() -> None:
    assert fit_weights(torch.ones(4, 4), [1, 0], [3], noise=0).tolist() == [
        [pytest.approx(0.5), pytest.approx(0.5)]
    ]


def test_a_planned_step_has_its_own_weights_and_any_other_half_a_line() -> None:
    fitted = Fitted(schedule=PLANNED)
    assert fitted.weights([0.0], 1.0) == [1.0]
    assert fitted.weights([2.0, 0.0], 3.0) == [1.5, -0.5]
    assert fitted.weights([4.0, 2.0, 0.0], 5.0) == [1.4, -0.6, 0.2]
    for times, at in (([2.0, 1.0], 3.0), ([2.0], 3.0), ([4.0, 2.0, 0.0], 6.0)):
        assert fitted.weights(times, at) == HALF_A_LINE.weights(times, at)
        assert Fitted().weights(times, at) == HALF_A_LINE.weights(times, at)


def test_planned_weights_are_those_of_the_steps_that_will_be_there() -> None:
    found = grams(1, 6)
    weights = fitted_weights(found, PLANNED, Fitted(values=2))
    assert [len(each) for each in weights] == [1, 2, 2]
    expected = fit_weights(found.mean(0), [4, 2], [5], noise=Fitted().noise)[0].tolist()
    assert list(weights[2]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": Schedule(steps=3, compute=(0,))}, "holds no weights"),
        ({"values": 2, "schedule": PLANNED}, "weighs 3: set values=3"),
    ],
    ids=["no weights", "too many"],
)
def test_a_schedule_that_does_not_fit_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Fitted(**options)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (((1.0,), (1.5, -0.5)), "for 2 steps, but 3 are skipped"),
        (((1.0, 0.0), (1.5, -0.5), (1.0,)), "step 1 has 2 weights"),
        (((1.0,), (float("nan"), 0.5), (1.0,)), "finite"),
    ],
    ids=["too few", "more than values", "not a number"],
)
def test_weights_that_are_none_are_refused(weights: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Schedule(steps=6, compute=(0, 2, 4), weights=weights)
