"""Spectrum's forecast: equality with a direct ridge solve, exactness without the ridge, the run."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.caching.forecasters.chebyshev import Chebyshev, chebyshev_row, ridge_weights
from skipstep.caching.forecasters.damped import noise_gain
from skipstep.caching.forecasters.lagrange import Lagrange

TIMES = [46.0, 38.0, 31.0, 25.0, 20.0, 15.0, 11.0, 8.0, 6.0, 4.0]


@settings(max_examples=50, deadline=None)
@given(
    known=st.integers(2, 10),
    degree=st.integers(1, 5),
    penalty=st.floats(1e-3, 5),
    ahead=st.integers(1, 4),
)
def test_equals_a_direct_ridge_solve_on_features(
    known: int, degree: int, penalty: float, ahead: int
) -> None:
    times, at, steps = TIMES[:known], TIMES[0] + ahead, 50
    features = np.random.default_rng(known).normal(size=(known, 7))
    vander = np.polynomial.chebyshev.chebvander(2 * np.array(times) / steps - 1, degree)
    system = np.vstack([vander, np.sqrt(penalty) * np.eye(degree + 1)])
    padded = np.vstack([features, np.zeros((degree + 1, 7))])
    coefficients = np.linalg.lstsq(system, padded, rcond=None)[0]
    expected = np.polynomial.chebyshev.chebvander([2 * at / steps - 1], degree) @ coefficients
    spectrum = Chebyshev(degree=degree, penalty=penalty, mix=1, steps=steps)
    forecast = np.array(spectrum.weights(times, at)) @ features
    np.testing.assert_allclose(forecast, expected[0], rtol=1e-6, atol=1e-8)


def test_the_polynomials_are_cosines() -> None:
    tau = 0.3
    expected = [np.cos(m * np.arccos(tau)) for m in range(6)]
    assert chebyshev_row(tau, 5) == pytest.approx(expected)


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_without_the_ridge_it_is_exact_on_polynomials_of_its_degree(degree: int) -> None:
    polynomial = np.polynomial.Polynomial([1.0, -0.5, 0.03, -0.001, 0.00002][: degree + 1])
    exact = Chebyshev(degree=degree, penalty=0, mix=1, steps=50)
    forecast = np.dot(exact.weights(TIMES, 49.0), polynomial(np.array(TIMES)))
    assert forecast == pytest.approx(polynomial(49.0), abs=1e-6)


def test_the_ridge_shrinks_constants_and_less_with_a_smaller_penalty() -> None:
    sums = [
        sum(Chebyshev(penalty=penalty, mix=1, steps=50, window=10).weights(TIMES, 48.0))
        for penalty in (0.0, 0.01, 0.1)
    ]
    assert sums[0] == pytest.approx(1)
    assert sums[0] > sums[1] > sums[2] > 0.9


def test_the_mix_goes_from_the_line_to_the_fit() -> None:
    line = Lagrange(order=2).weights(TIMES, 48.0)
    fit = Chebyshev(mix=1, steps=50).weights(TIMES, 48.0)
    assert Chebyshev(mix=0, steps=50).weights(TIMES, 48.0) == pytest.approx(line)
    half = [(a + b) / 2 for a, b in zip(line, fit, strict=True)]
    assert Chebyshev(mix=0.5, steps=50).weights(TIMES, 48.0) == pytest.approx(half)


def test_the_fit_amplifies_less_noise_than_a_line_does_over_a_long_skip() -> None:
    fit = Chebyshev(degree=1, penalty=0, mix=1, steps=50).weights(TIMES, 49.0)
    assert noise_gain(fit) < 1 < noise_gain(Lagrange(order=2).weights(TIMES, 49.0))


def test_a_run_tells_the_number_of_steps_unless_the_user_did() -> None:
    assert Chebyshev().for_run(20, ()) == Chebyshev(steps=20)
    assert Chebyshev(steps=50).for_run(20, ()) == Chebyshev(steps=50)
    assert Chebyshev().for_run(0, ()) == Chebyshev()
    fixed, own = Chebyshev(steps=50), Chebyshev(steps=20)
    times = [12.0, 9.0, 6.0, 4.0]
    assert fixed.weights(times, 14.0) != pytest.approx(own.weights(times, 14.0))


def test_without_a_number_of_steps_a_line_is_still_a_line() -> None:
    exact = Chebyshev(degree=2, penalty=0, mix=1)
    assert np.dot(exact.weights(TIMES, 55.0), TIMES) == pytest.approx(55)


def test_few_anchors() -> None:
    assert Chebyshev(steps=50).weights([4.0], 6.0) == [1.0]
    assert np.dot(ridge_weights([0.2, -0.4], 0.8, degree=1, penalty=0.0), [3, 1]) == (
        pytest.approx(5)
    )
    assert Chebyshev(window=7).anchors == 7


@pytest.mark.parametrize("options", [{"degree": 0}, {"penalty": -1}, {"window": 1}, {"mix": 2}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Chebyshev(**options)  # type: ignore[arg-type]
