"""A line of rising weight: reuse at its start, the whole line at its end, and in between both."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.forecasters.rising import Rising

TIMES = st.lists(st.integers(0, 40), min_size=2, max_size=2, unique=True).map(
    lambda found: sorted(map(float, found), reverse=True)
)


@given(times=TIMES, ahead=st.integers(1, 9))
def test_it_is_reuse_at_weight_0_and_a_line_at_weight_1(times: list[float], ahead: int) -> None:
    at = times[0] + ahead
    assert Rising(start=0, stop=0).weights(times, at) == [1.0, 0.0]
    line = Lagrange(order=2).weights(times, at)
    assert Rising(start=1, stop=1).weights(times, at) == pytest.approx(line)
    half = Rising(start=0.5, stop=0.5).weights(times, at)
    assert half == pytest.approx([(1 + line[0]) / 2, line[1] / 2])


@given(times=TIMES, ahead=st.integers(1, 9), start=st.floats(0, 2), stop=st.floats(0, 2))
def test_it_is_exact_on_constants(
    times: list[float], ahead: int, start: float, stop: float
) -> None:
    rising = Rising(start=start, stop=stop, steps=50)
    assert sum(rising.weights(times, times[0] + ahead)) == pytest.approx(1)
    assert rising.weights(times[:1], times[0] + ahead) == [1.0]


def test_the_weight_rises_with_the_run_that_it_is_in() -> None:
    run = Rising().for_run(21, ())
    assert isinstance(run, Rising) and run.steps == 21
    assert [run.weights([2.0, 0.0], at)[1] for at in (3.0, 4.0)] == pytest.approx(
        [-0.15 * 0.5, -0.2 * 1.0]
    )
    assert Rising(steps=5).for_run(21, ()) == Rising(steps=5)
    assert Rising().weights([2.0, 0.0], 9.0) == [1.0, 0.0], "nobody knows how long the run is"
