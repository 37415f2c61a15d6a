"""Dynamic modes: exact on sums of exponentials, growth and decay, and every way to the fallback."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skipstep.caching.forecasters.dmd import DynamicModes, dot_products, even_tail
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.kernels.weighted_sum import weighted_sum

torch.set_num_threads(1)


def signal(times: list[float], rates: list[complex], rows: int = 2) -> list[Tensor]:
    """Return sums of exponentials rate^t with a pattern of their own per row and rate."""
    generator = torch.Generator().manual_seed(len(rates))
    patterns = torch.randn(len(rates), rows, 11, generator=generator, dtype=torch.complex128)
    return [
        sum((p * rate**t for p, rate in zip(patterns, rates, strict=True)), torch.zeros(())).real
        for t in times
    ]


@settings(max_examples=60, deadline=None)
@given(
    rates=st.lists(
        st.sampled_from([0.6, 0.75, 0.9, 1.0, 1.1]), min_size=1, max_size=3, unique=True
    ),
    spacing=st.integers(1, 3),
    ahead=st.sampled_from([1.0, 1.5, 2.0, 4.0]),
)
def test_exact_on_sums_of_exponentials(rates: list[float], spacing: int, ahead: float) -> None:
    times = [float(-spacing * j) for j in range(5)]
    values = signal([*times, ahead], list(rates))
    # The default tolerance calls a mode noise that has decayed below 1e-4 of the largest.
    modes = DynamicModes(rank_tolerance=1e-7)
    torch.testing.assert_close(
        modes.forecast(times, values[:-1], ahead), values[-1], rtol=1e-4, atol=1e-4
    )


def test_exact_on_a_damped_oscillation_between_computed_steps() -> None:
    turn = 0.95 * complex(math.cos(0.5), math.sin(0.5))
    times = [0.0, -2.0, -4.0, -6.0, -8.0]
    values = signal([*times, 1.0], [turn, turn.conjugate()])
    torch.testing.assert_close(
        DynamicModes().forecast(times, values[:-1], 1.0), values[-1], rtol=1e-5, atol=1e-5
    )
    line = weighted_sum(values[:-1], Lagrange(order=2).weights(times, 1.0))
    assert float((line - values[-1]).abs().max()) > 0.05


def test_it_starts_from_the_newest_value_also_where_modes_miss_some_of_it() -> None:
    values = [torch.randn(2, 30, dtype=torch.float64) for _ in range(6)]
    times = [float(-j) for j in range(6)]
    modes = DynamicModes(rank_tolerance=0.5)
    torch.testing.assert_close(modes.forecast(times, values, 0.0), values[0])


def test_a_growing_mode_is_limited() -> None:
    times = [0.0, -1.0, -2.0, -3.0]
    values = [torch.full((1, 4), 3.0**t, dtype=torch.float64) for t in times]
    free, limited, still = (
        DynamicModes(max_growth=g).forecast(times, values, 2.0)[0, 0].item() for g in (4, 2, 1)
    )
    assert (free, limited, still) == pytest.approx((9, 4, 1))


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    times = [float(-j) for j in range(5)]
    values = signal(times, [0.7, 1.05, 0.9], rows=3)
    modes = DynamicModes()
    together = modes.forecast(times, values, 2.0)
    for row in range(3):
        alone = modes.forecast(times, [value[row : row + 1] for value in values], 2.0)
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize(
    "times", [[0.0], [0.0, -1.0, -2.0], [0.0, -4.0, -8.0, -9.0, -10.0], [0.0, -1.0, -3.0, -4.0]]
)
def test_a_short_or_uneven_tail_takes_the_polynomial(times: list[float]) -> None:
    values = [torch.randn(2, 5) for _ in times]
    expected = weighted_sum(values, Lagrange(order=2).weights(times, 2.0))
    assert torch.equal(DynamicModes().forecast(times, values, 2.0), expected)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_only_the_row_whose_modes_say_nothing_takes_the_polynomial(bad: float) -> None:
    times = [0.0, -1.0, -2.0, -3.0]
    good = [torch.full((1, 4), 0.5**t, dtype=torch.float64) for t in times]
    values = [torch.cat([x, torch.full_like(x, bad)]) for x in good]
    forecast = DynamicModes().forecast(times, values, 1.0)
    assert forecast[0].tolist() == pytest.approx([0.5] * 4)
    line = weighted_sum(values, Lagrange(order=2).weights(times, 1.0))
    assert torch.equal(forecast[1].nan_to_num(7.0), line[1].nan_to_num(7.0))


def test_constants_stay() -> None:
    times = [0.0, -2.0, -4.0, -6.0]
    value = torch.randn(2, 9)
    torch.testing.assert_close(DynamicModes().forecast(times, [value] * 4, 5.0), value)


def test_dot_products_and_tails() -> None:
    values = [torch.randn(2, 3, 4) for _ in range(3)]
    stack = torch.stack(values, 1).flatten(2).double()
    torch.testing.assert_close(dot_products(values), stack @ stack.mT)
    assert [even_tail(t) for t in ([5.0], [5.0, 3.0], [5.0, 3.0, 1.0, 0.0])] == [1, 2, 3]


def test_bf16_stays_bf16_and_the_fallback_has_an_order() -> None:
    values = [torch.randn(1, 4, dtype=torch.bfloat16) for _ in range(4)]
    times = [0.0, -1.0, -2.0, -3.0]
    assert DynamicModes().forecast(times, values, 1.0).dtype == torch.bfloat16
    assert DynamicModes(fallback=3).weights(times, 1.0) == Lagrange(order=3).weights(times, 1.0)
    assert DynamicModes(window=8).anchors == 8
    with pytest.raises(ValueError, match="window"):
        DynamicModes(window=3)
