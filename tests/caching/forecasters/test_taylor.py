"""TaylorSeer's forecast: what it is exact on, its closed-form bias, fewer anchors."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.caching.forecasters.taylor import Taylor, taylor_weights


@st.composite
def uneven_times(draw: st.DrawFn) -> tuple[list[float], float]:
    gaps = draw(st.lists(st.integers(1, 8), min_size=5, max_size=5))
    start = draw(st.integers(0, 30))
    times = [float(start + sum(gaps[:j])) for j in range(5)][::-1]
    return times, times[0] + draw(st.integers(0, 8))


@settings(max_examples=200, deadline=None)
@given(case=uneven_times(), order=st.integers(1, 4), known=st.integers(2, 5))
def test_exact_on_lines_with_uneven_anchors(
    case: tuple[list[float], float], order: int, known: int
) -> None:
    times, at = case[0][:known], case[1]
    forecast = sum(
        w * (3 - 2 * t) for w, t in zip(Taylor(order=order).weights(times, at), times, strict=True)
    )
    assert forecast == pytest.approx(3 - 2 * at, abs=1e-6)


def test_a_falling_series_is_continued_downwards() -> None:
    # With k of the wrong sign the forecast would be 12: near-reuse hides such an error elsewhere.
    weights = Taylor(order=1).weights([3.0, 1.0], 5.0)
    assert weights[0] * 8.0 + weights[1] * 10.0 == 6.0


@pytest.mark.parametrize("h", [1.0, 3.0])
@pytest.mark.parametrize("k", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_on_a_quadratic_it_is_off_by_minus_h_k(h: float, k: float, order: int) -> None:
    times = [20 - h * j for j in range(order + 1)]
    at = 20 + k
    forecast = sum(
        w * t**2 for w, t in zip(Taylor(order=order).weights(times, at), times, strict=True)
    )
    assert forecast - at**2 == pytest.approx(-h * k)


def test_equals_the_recursion_of_the_paper_on_values() -> None:
    times, values, at, order = [17.0, 12.0, 10.0, 3.0], [2.0, -1.0, 4.0, 0.5], 20.0, 3
    row, expected = values, 0.0
    for j in range(order + 1):
        expected += row[0] * (at - times[0]) ** j / math.factorial(j)
        row = [(row[m] - row[m + 1]) / (times[m] - times[m + 1]) for m in range(len(row) - 1)]
    forecast = sum(
        w * v for w, v in zip(taylor_weights(times, at, order=order), values, strict=True)
    )
    assert forecast == pytest.approx(expected)


@settings(max_examples=100, deadline=None)
@given(case=uneven_times(), order=st.integers(1, 4), known=st.integers(1, 5))
def test_weights_sum_to_one_and_reproduce_the_newest_anchor(
    case: tuple[list[float], float], order: int, known: int
) -> None:
    times, at = case[0][:known], case[1]
    forecaster = Taylor(order=order)
    assert sum(forecaster.weights(times, at)) == pytest.approx(1, abs=1e-6)
    assert forecaster.weights(times, times[0]) == [1.0] + [0.0] * (known - 1)


def test_fewer_anchors_lower_the_order_and_older_ones_get_no_weight() -> None:
    assert Taylor(order=3).weights([4.0], 6.0) == [1.0]
    assert Taylor(order=3).weights([4.0, 2.0], 6.0) == Taylor(order=1).weights([4.0, 2.0], 6.0)
    assert Taylor(order=1).weights([4.0, 2.0, 1.0], 6.0) == [2.0, -1.0, 0.0]
    assert [Taylor(order=o).anchors for o in (1, 2, 4)] == [2, 3, 5]


@pytest.mark.parametrize("order", [0, 5, 1.5])
def test_impossible_orders_are_refused(order: float) -> None:
    with pytest.raises(ValueError, match="order"):
        Taylor(order=order)  # type: ignore[arg-type]
