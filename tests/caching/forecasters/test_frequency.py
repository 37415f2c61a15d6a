"""FreqCa's forecast: low frequencies repeated, high ones extrapolated, grids known or refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.caching.forecasters.frequency import (
    FrequencySplit,
    find_grid,
    low_pass,
    projection,
)
from skipstep.caching.forecasters.hermite import Hermite
from skipstep.kernels.weighted_sum import weighted_sum

torch.set_num_threads(1)
TIMES = [9.0, 6.0, 4.0]


def cosine(rows: int, columns: int, u: int, v: int) -> torch.Tensor:
    """Return the DCT-II pattern of frequency u down and v across."""
    down = torch.cos(math.pi * u * (torch.arange(rows) + 0.5) / rows)
    across = torch.cos(math.pi * v * (torch.arange(columns) + 0.5) / columns)
    return down[:, None] * across[None, :]


@settings(max_examples=50, deadline=None)
@given(size=st.integers(1, 20), share=st.floats(0, 1))
def test_the_projection_is_one(size: int, share: float) -> None:
    p = projection(size, round(share * size))
    torch.testing.assert_close(p @ p, p)
    torch.testing.assert_close(p, p.mT)
    assert float(p.trace()) == pytest.approx(round(share * size))


@pytest.mark.parametrize(
    ("u", "v", "is_low"), [(0, 0, True), (2, 1, True), (3, 0, False), (1, 5, False)]
)
def test_patterns_below_the_cutoff_stay_and_the_others_go(u: int, v: int, is_low: bool) -> None:
    x = cosine(6, 10, u, v)
    low = low_pass(x[None], (6, 10), cutoff=0.5)[0]
    torch.testing.assert_close(low, x if is_low else torch.zeros_like(x))


def test_tokens_are_filtered_as_the_pictures_they_are() -> None:
    picture = torch.randn(2, 3, 5, 4, 6)  # batch, channels, frames, rows, columns
    tokens = picture.movedim(1, -1).flatten(1, 3)
    low = low_pass(picture, (4, 6), cutoff=0.5).movedim(1, -1).flatten(1, 3)
    torch.testing.assert_close(low_pass(tokens, (4, 6), cutoff=0.5), low)


@pytest.mark.parametrize("order", [1, 2])
def test_low_repeats_and_high_is_hermites(order: int) -> None:
    low, high = cosine(8, 8, 1, 0), cosine(8, 8, 0, 7)
    level, ripple = [5.0, 1.0, -2.0], [3.0, 2.0, 4.0]
    values = [(a * low + b * high).reshape(1, 64, 1) for a, b in zip(level, ripple, strict=True)]
    split = FrequencySplit(order=order, cutoff=0.25).for_run(20, (4, 16, 16))
    assert isinstance(split, FrequencySplit)
    forecast = split.forecast(TIMES, values, 11.0).reshape(8, 8)
    weights = Hermite(order=order, sigma=split.sigma).weights(TIMES, 11.0)
    torch.testing.assert_close(forecast, 5.0 * low + float(np.dot(weights, ripple)) * high)


def test_the_ends_of_the_cutoff_are_hermite_and_reuse() -> None:
    values = [torch.randn(2, 16, 3) for _ in TIMES]
    none = FrequencySplit(cutoff=0, order=2).for_run(20, (16, 64))
    every = FrequencySplit(cutoff=1).for_run(20, (16, 64))
    assert isinstance(none, FrequencySplit) and isinstance(every, FrequencySplit)
    hermite = weighted_sum(values, Hermite(order=2).weights(TIMES, 11.0))
    torch.testing.assert_close(none.forecast(TIMES, values, 11.0), hermite)
    torch.testing.assert_close(every.forecast(TIMES, values, 11.0), values[0])


def test_constants_stay_and_rows_stand_alone() -> None:
    split = FrequencySplit(inputs=(4, 8, 12))
    values = [torch.randn(3, 24, 5) for _ in TIMES]
    together = split.forecast(TIMES, values, 11.0)
    for row in range(3):
        alone = split.forecast(TIMES, [v[row : row + 1] for v in values], 11.0)
        torch.testing.assert_close(together[row : row + 1], alone)
    torch.testing.assert_close(split.forecast(TIMES, [values[0]] * 3, 11.0), values[0])


def test_a_stream_without_the_pictures_grid_is_extrapolated_whole() -> None:
    values = [torch.randn(2, 7, 5) for _ in TIMES]
    split = FrequencySplit(inputs=(4, 8, 12))
    expected = weighted_sum(values, split.weights(TIMES, 11.0))
    assert torch.equal(split.forecast(TIMES, values, 11.0), expected)


@pytest.mark.parametrize(
    ("shape", "inputs", "given", "grid"),
    [
        ((256, 32), (4, 32, 32), None, (16, 16)),  # picture, patches of two
        ((96, 32), (4, 8, 12), None, (8, 12)),  # picture, no patches
        ((4, 8, 12), (4, 8, 12), None, (8, 12)),  # output of the input's layout
        ((77, 32), (4, 32, 32), None, None),  # text
        ((3 * 24, 32), (16, 3, 8, 12), None, (4, 6)),  # video, frames second
        ((3 * 24, 32), (3, 16, 8, 12), None, (4, 6)),  # video, frames first
        ((24, 32), (16, 3, 8, 12), None, (4, 6)),  # frames in the batch
        ((16, 3, 8, 12), (16, 3, 8, 12), None, (8, 12)),
        ((64, 32), (64, 16), None, (8, 8)),  # packed and square
        ((60, 32), (60, 16), None, None),  # packed and not square
        ((60, 32), (60, 16), (5, 12), (5, 12)),
        ((180, 32), (180, 16), (5, 12), (5, 12)),  # three frames
        ((61, 32), (60, 16), (5, 12), None),
        ((64, 32), (49, 16), None, None),  # a square number of other tokens
        ((64, 32), (), None, None),  # a list of pictures, tokens inside
        ((4, 1, 8, 12), (), None, (8, 12)),  # a list of pictures, stacked
        ((32,), (4, 8, 8), None, None),
    ],
)
def test_grids(
    shape: tuple[int, ...],
    inputs: tuple[int, ...],
    given: tuple[int, int] | None,
    grid: tuple[int, int] | None,
) -> None:
    assert find_grid(shape, inputs, given) == grid


def test_the_main_feature_without_a_grid_is_refused_in_words() -> None:
    split = FrequencySplit(inputs=(60, 16))
    assert "Give grid=(rows, columns)" in (split.why_not((60, 32)) or "")
    assert FrequencySplit(inputs=(60, 16), grid=(6, 10)).why_not((60, 32)) is None


def test_bf16_stays_bf16() -> None:
    values = [torch.randn(1, 16, 4, dtype=torch.bfloat16) for _ in TIMES]
    split = FrequencySplit(inputs=(16, 4))
    assert split.forecast(TIMES, values, 11.0).dtype == torch.bfloat16
    assert split.anchors == 2
