"""FoCa's forecast: lines at uneven anchors, and the two steps done by hand on values."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.caching.forecasters.foca import FoCaForecaster, foca_weights
from skipstep.caching.forecasters.lagrange import Lagrange

FULL = [0, 1, 2, 6, 10]


@pytest.mark.parametrize("at", [3, 4, 5, 7, 8, 9, 11, 12, 13, 20])
def test_the_line_y_is_t_with_uneven_full_steps_is_continued(at: int) -> None:
    times = [float(t) for t in FULL[::-1] if t < at][:3]
    weights = FoCaForecaster().weights(times, float(at))
    assert sum(w * t for w, t in zip(weights, times, strict=True)) == pytest.approx(at)


@settings(max_examples=200, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 8), min_size=2, max_size=2),
    ahead=st.integers(1, 8),
    values=st.lists(st.floats(-5, 5), min_size=3, max_size=3),
)
def test_equals_the_predictor_and_the_corrector_on_values(
    gaps: list[int], ahead: int, values: list[float]
) -> None:
    times = [20.0, 20.0 - gaps[0], 20.0 - sum(gaps)]
    f1, f2, f3 = values
    h, k = times[0] - times[1], float(ahead)
    d12, d23 = (f1 - f2) / h, (f2 - f3) / (times[1] - times[2])
    slope = d12 + h * (d12 - d23) / (times[0] - times[2])
    w = k / h
    predicted = ((1 + w) ** 2 * f1 - w**2 * f2 + (1 + w) * k * slope) / (1 + 2 * w)
    expected = f1 + k / 2 * (slope + (predicted - f1) / k)
    forecast = sum(w * v for w, v in zip(foca_weights(times, 20.0 + ahead), values, strict=True))
    assert forecast == pytest.approx(expected, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(gaps=st.lists(st.integers(1, 8), min_size=2, max_size=2), k=st.integers(0, 8))
def test_its_error_on_a_quadratic_is_the_docstrings(gaps: list[int], k: int) -> None:
    times = [20.0, 20.0 - gaps[0], 20.0 - sum(gaps)]
    forecast = sum(w * t**2 for w, t in zip(foca_weights(times, 20.0 + k), times, strict=True))
    omega = k / gaps[0]
    error = -(k**2) - k * gaps[0] * omega / (2 + 4 * omega)
    assert forecast - (20 + k) ** 2 == pytest.approx(error, abs=1e-6)


def test_even_anchors_one_step_on_by_hand() -> None:
    # f_1 = 3/4, -1, 1/4; F_p = 7/3, -5/3, 1/3; half of F_1 + 2 f_1 and F_p.
    assert foca_weights([4.0, 2.0, 0.0], 6.0) == pytest.approx([29 / 12, -11 / 6, 5 / 12])


def test_it_starts_from_the_newest_value() -> None:
    assert foca_weights([7.0, 4.0, 0.0], 7.0) == pytest.approx([1, 0, 0])


def test_fewer_anchors_are_a_line_and_reuse() -> None:
    assert FoCaForecaster().weights([4.0], 6.0) == [1.0]
    assert FoCaForecaster().weights([4.0, 1.0], 6.0) == Lagrange(order=2).weights([4.0, 1.0], 6.0)
    assert FoCaForecaster().weights([4.0, 3.0, 1.0, 0.0], 6.0)[3] == 0
    assert FoCaForecaster().anchors == 3
