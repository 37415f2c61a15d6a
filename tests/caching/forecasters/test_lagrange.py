"""AB-Cache's forecast: exact on polynomials of its order with uneven anchors, and its error."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.caching.forecasters.lagrange import Lagrange, lagrange_weights


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 6), min_size=4, max_size=4),
    ahead=st.integers(0, 6),
    order=st.integers(1, 4),
    coefficients=st.lists(st.integers(-5, 5), min_size=4, max_size=4),
)
def test_exact_on_polynomials_of_its_order_with_uneven_anchors(
    gaps: list[int], ahead: int, order: int, coefficients: list[int]
) -> None:
    times = [float(sum(gaps[:j])) for j in range(1, 5)][::-1][:order]
    at = times[0] + ahead
    polynomial = np.polynomial.Polynomial(coefficients[:order])  # degree order - 1
    forecast = sum(
        w * polynomial(t)
        for w, t in zip(Lagrange(order=order).weights(times, at), times, strict=True)
    )
    assert forecast == pytest.approx(polynomial(at), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_not_exact_one_degree_higher(order: int) -> None:
    times = [10.0, 7.0, 5.0][:order]
    forecast = sum(
        w * t**order for w, t in zip(Lagrange(order=order).weights(times, 12.0), times, strict=True)
    )
    assert abs(forecast - 12.0**order) > 1


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_the_error_falls_with_the_power_of_the_step(order: int) -> None:
    def error(h: float) -> float:
        times = [1 - h * j for j in range(order)]
        weights = Lagrange(order=order).weights(times, 1 + h)
        return abs(
            sum(w * math.exp(t) for w, t in zip(weights, times, strict=True)) - math.exp(1 + h)
        )

    measured = np.log2(error(0.02) / error(0.01))
    assert measured == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize(
    ("order", "weights"), [(1, [1]), (2, [2, -1]), (3, [3, -3, 1]), (4, [4, -6, 4, -1])]
)
def test_even_spacing_gives_binomial_weights(order: int, weights: list[int]) -> None:
    times = [9.0 - 2 * j for j in range(order)]
    assert Lagrange(order=order).weights(times, 11.0) == pytest.approx(weights)


def test_uneven_weights_equal_exact_fractions() -> None:
    expected = [Fraction(5, 2), Fraction(-5, 3), Fraction(1, 6)]
    weights = lagrange_weights([0.0, -1.0, -4.0], 1.0, order=3)
    assert weights == pytest.approx([float(w) for w in expected])


@pytest.mark.parametrize(("ahead", "gains"), [(1.0, [1, 3, 7, 15]), (3.0, [1, 7, 31, 111])])
def test_noise_gain_grows_with_order_and_distance(ahead: float, gains: list[int]) -> None:
    measured = [
        sum(abs(w) for w in Lagrange(order=k).weights([0.0, -1.0, -2.0, -3.0][:k], ahead))
        for k in (1, 2, 3, 4)
    ]
    assert measured == pytest.approx(gains)


def test_fewer_anchors_lower_the_order_and_older_ones_get_no_weight() -> None:
    assert Lagrange(order=4).weights([4.0], 6.0) == [1.0]
    assert Lagrange(order=4).weights([4.0, 2.0], 6.0) == [2.0, -1.0]
    assert Lagrange(order=2).weights([4.0, 2.0, 1.0], 6.0) == [2.0, -1.0, 0.0]
    assert Lagrange(order=3).anchors == 3


@pytest.mark.parametrize("order", [0, 5])
def test_impossible_orders_are_refused(order: int) -> None:
    with pytest.raises(ValueError, match="order"):
        Lagrange(order=order)
