"""The brakes: shrunk differences, the noise gain against drawn noise, and its limit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from skipstep.caching.base import Forecaster
from skipstep.caching.forecasters.chebyshev import Chebyshev
from skipstep.caching.forecasters.damped import (
    Damped,
    allowed_noise_gain,
    longest_skip,
    noise_gain,
    with_noise_limit,
)
from skipstep.caching.forecasters.dmd import DynamicModes
from skipstep.caching.forecasters.foca import FoCaForecaster
from skipstep.caching.forecasters.hermite import Hermite
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.forecasters.taylor import Taylor

LINEAR = [Reuse(), Taylor(order=2), Lagrange(order=4), Hermite(order=2), FoCaForecaster()]
TIMES = [9.0, 6.0, 4.0, 3.0, 1.0]


@pytest.mark.parametrize("inner", [*LINEAR, Chebyshev(steps=20)], ids=lambda f: f.type)
def test_without_brakes_nothing_changes(inner: Forecaster) -> None:
    times = TIMES[: inner.anchors]
    damped = Damped(forecaster=inner, damping=0)  # type: ignore[arg-type]
    assert damped.weights(times, 11.0) == inner.weights(times, 11.0)
    assert damped.anchors == inner.anchors


@settings(max_examples=60, deadline=None)
@given(
    inner=st.sampled_from(LINEAR),
    damping=st.floats(0, 1),
    limit=st.none() | st.floats(1, 5),
    known=st.integers(1, 5),
    ahead=st.integers(1, 6),
)
def test_constants_stay_and_the_limit_holds(
    inner: Forecaster, damping: float, limit: float | None, known: int, ahead: int
) -> None:
    times = TIMES[: min(known, inner.anchors)]
    damped = Damped(forecaster=inner, damping=damping, max_noise_gain=limit)  # type: ignore[arg-type]
    weights = damped.weights(times, 9.0 + ahead)
    assert len(weights) == len(times) and sum(weights) == pytest.approx(1)
    assert limit is None or noise_gain(weights) <= limit + 1e-6


def test_damping_goes_from_the_forecaster_to_reuse() -> None:
    firsts = [
        Damped(forecaster=Lagrange(), damping=damping).weights([4.0, 2.0], 6.0)
        for damping in (0, 0.25, 0.5, 1)
    ]
    assert firsts == [[2.0, -1.0], [1.75, -0.75], [1.5, -0.5], [1.0, 0.0]]


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_gain_is_what_drawn_noise_shows(order: int) -> None:
    weights = Lagrange(order=order).weights([2.0, 1.0, 0.0][:order], 3.0)
    noise = torch.randn(order, 200_000, generator=torch.Generator().manual_seed(0))
    spread = float((torch.tensor(weights)[:, None] * noise).sum(0).std())
    assert spread == pytest.approx(noise_gain(weights), rel=0.02)
    assert noise_gain(weights) == pytest.approx(math.sqrt([1, 5, 19][order - 1]))


@pytest.mark.parametrize(
    ("limit", "order"), [(1.0, 1), (2.2, 1), (math.sqrt(5), 2), (4.3, 2), (4.4, 3), (99.0, 3)]
)
def test_the_order_falls_until_the_gain_is_allowed(limit: float, order: int) -> None:
    times = [2.0, 1.0, 0.0]
    limited = Damped(forecaster=Lagrange(order=3), damping=0, max_noise_gain=limit).weights(
        times, 3.0
    )
    assert limited == Lagrange(order=order).weights(times, 3.0)


def test_longer_skips_are_more_careful() -> None:
    limited = Damped(forecaster=Lagrange(order=3), damping=0, max_noise_gain=5)
    used = [sum(w != 0 for w in limited.weights([2.0, 1.0, 0.0], at)) for at in (3.0, 4.0, 9.0)]
    assert used == [3, 2, 1]


def test_what_gain_is_worth_having() -> None:
    # Measured by NVIDIA on 8-bit activations: 1.2 % noise, 2 % change. A line is not worth it.
    limit = allowed_noise_gain(change=0.02, noise=0.012)
    assert 1 < limit < noise_gain([2.0, -1.0])
    # At the limit the squared errors are equal: change and noise of reuse, noise of the forecast.
    assert (limit * 0.012) ** 2 == pytest.approx(0.02**2 + 0.012**2)
    for change, noise in ((-1.0, 1.0), (1.0, 0.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="noise above 0"):
            allowed_noise_gain(change=change, noise=noise)


@pytest.mark.parametrize("limit", [1.0, 1.5, 2.3, 5.0, 20.0])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("interval", [1, 3])
def test_skips_end_where_the_gain_does(order: int, interval: int, limit: float) -> None:
    forecaster = Lagrange(order=order)
    longest = longest_skip(forecaster, interval=interval, max_noise_gain=limit, most=30)
    times = [-float(interval * j) for j in range(order)]
    gains = [noise_gain(forecaster.weights(times, float(k))) for k in range(1, 31)]
    assert all(gain <= limit + 1e-9 for gain in gains[:longest])
    assert longest == 30 or gains[longest] > limit
    assert order > 1 or longest == 30, "reuse never amplifies"


def test_it_hands_the_run_on_and_survives_json() -> None:
    damped = Damped(forecaster={"type": "chebyshev", "window": 5}, damping=0.1)  # type: ignore[arg-type]
    assert damped.for_run(30, ()) == Damped(forecaster=Chebyshev(window=5, steps=30), damping=0.1)
    adapter = TypeAdapter(Damped)
    assert adapter.validate_json(adapter.dump_json(damped)) == damped
    assert Damped(forecaster="taylor").forecaster == Taylor()  # type: ignore[arg-type]


def test_what_is_not_linear_is_refused() -> None:
    for bad in (DynamicModes(), "dmd"):
        with pytest.raises(ValidationError, match="dmd"):
            Damped(forecaster=bad)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="max_noise_gain"):
        Damped(max_noise_gain=0.5)


def test_no_limit_is_no_wrapper() -> None:
    assert with_noise_limit(Lagrange(), None) == Lagrange()
    assert with_noise_limit(Lagrange(), 2) == Damped(
        forecaster=Lagrange(), damping=0, max_noise_gain=2
    )
