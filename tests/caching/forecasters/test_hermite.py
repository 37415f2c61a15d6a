"""HiCache's forecast: the polynomials, the sign of their argument, lines, damping."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.caching.forecasters.hermite import Hermite, hermite, hermite_weights
from skipstep.caching.forecasters.taylor import Taylor

GAPS = st.lists(st.integers(1, 8), min_size=4, max_size=4)


def anchors(gaps: list[int]) -> list[float]:
    return [float(20 - sum(gaps[:j])) for j in range(5)]


@settings(max_examples=100, deadline=None)
@given(n=st.integers(0, 6), x=st.floats(-5, 5))
def test_the_recursion_gives_numpys_physicists_polynomials(n: int, x: float) -> None:
    expected = np.polynomial.hermite.Hermite.basis(n)(x)
    assert hermite(n, x) == pytest.approx(expected, rel=1e-9, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(gaps=GAPS, ahead=st.integers(0, 8), order=st.integers(1, 4), known=st.integers(2, 5))
def test_sigma_of_root_one_half_is_exact_on_lines_with_uneven_anchors(
    gaps: list[int], ahead: int, order: int, known: int
) -> None:
    times = anchors(gaps)[:known]
    weights = Hermite(order=order, sigma=math.sqrt(0.5)).weights(times, 20.0 + ahead)
    line = sum(w * (3 - 2 * t) for w, t in zip(weights, times, strict=True))
    assert line == pytest.approx(3 - 2 * (20 + ahead), abs=1e-6)


@pytest.mark.parametrize("sigma", [0.3, 0.5, 0.7])
def test_a_falling_series_is_continued_downwards(sigma: float) -> None:
    # With x = -k the forecast would rise: near-reuse hides such an error elsewhere.
    weights = Hermite(sigma=sigma).weights([3.0, 1.0], 5.0)
    forecast = weights[0] * 8.0 + weights[1] * 10.0
    assert forecast == pytest.approx(8 - 2 * 2 * sigma**2)


@settings(max_examples=100, deadline=None)
@given(gaps=GAPS, ahead=st.integers(0, 8), order=st.integers(1, 4), known=st.integers(1, 5))
def test_it_is_exact_on_constants(gaps: list[int], ahead: int, order: int, known: int) -> None:
    weights = Hermite(order=order).weights(anchors(gaps)[:known], 20.0 + ahead)
    assert sum(weights) == pytest.approx(1, abs=1e-6)


def test_order_two_by_hand() -> None:
    # D1 = (9 - 4) / 1, D2 = (5 - 3) / 1, H~_1(2) = 2 * 0.25 * 2 = 1, H~_2(2) = 0.25 (4 - 2) = 0.5
    weights = hermite_weights([3.0, 2.0, 1.0], 5.0, order=2, sigma=0.5)
    forecast = sum(w * f for w, f in zip(weights, [9.0, 4.0, 1.0], strict=True))
    assert forecast == pytest.approx(9 + 5 * 1 + 2 * 0.5 / 2)


def test_order_one_starts_from_the_newest_value_and_order_two_does_not() -> None:
    assert Hermite(order=1).weights([4.0, 1.0], 4.0) == [1.0, 0.0]
    weights = Hermite(order=2, sigma=0.5).weights([3.0, 2.0, 1.0], 3.0)
    forecast = sum(w * f for w, f in zip(weights, [9.0, 4.0, 1.0], strict=True))
    assert forecast == pytest.approx(9 - 2 * 0.25)  # D2 H~_2(0) / 2 = 2 (-2 sigma^2) / 2


@pytest.mark.parametrize("ahead", [1.0, 3.0, 7.0])
def test_a_larger_sigma_goes_further_and_no_further_than_taylor(ahead: float) -> None:
    times = [4.0, 1.0]
    slopes = [Hermite(sigma=s).weights(times, 4 + ahead)[0] for s in (0.2, 0.5, math.sqrt(0.5))]
    assert slopes == sorted(slopes)
    assert slopes[-1] == pytest.approx(Taylor().weights(times, 4 + ahead)[0])


def test_fewer_anchors_lower_the_order_and_older_ones_get_no_weight() -> None:
    assert Hermite(order=3).weights([4.0], 6.0) == [1.0]
    assert Hermite(sigma=0.5).weights([4.0, 2.0, 1.0], 6.0) == [1.5, -0.5, 0.0]
    assert [Hermite(order=o).anchors for o in (1, 4)] == [2, 5]


@pytest.mark.parametrize("options", [{"order": 0}, {"order": 5}, {"sigma": 0}, {"sigma": 1.1}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Hermite(**options)  # type: ignore[arg-type]
