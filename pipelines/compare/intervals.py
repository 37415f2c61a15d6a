"""Means with bootstrap intervals and worst deciles: what a handful of prompts can and cannot tell.

The percentile bootstrap (Efron 1979, doi:10.1214/aos/1176344552) resamples the samples with
replacement and takes the 2.5 % and 97.5 % quantiles of the statistic. It needs no assumption about
the distribution, but with fewer than about ten samples the interval is too narrow; with one sample
there is none.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Estimate", "bootstrap_interval", "estimate", "worst_decile"]

RESAMPLES = 2000
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A mean over samples, its 95 % interval, the mean of the worst tenth and the sample size.

    `identical` counts samples with an infinite value (the PSNR of identical pictures) and `broken`
    those that are not a number; `mean`, `low`, `high` and `worst` are taken over the others, and
    are None when there are too few.
    """

    mean: float | None
    low: float | None
    high: float | None
    worst: float | None
    count: int
    identical: int = 0
    broken: int = 0


def mean_of_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each row."""
    means: NDArray[np.float64] = rows.mean(axis=1)
    return means


def median_of_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the median of each row."""
    medians: NDArray[np.float64] = np.median(rows, axis=1)
    return medians


def bootstrap_interval(
    values: Sequence[float], *, statistic: Statistic = mean_of_rows, seed: int = 0
) -> tuple[float, float] | None:
    """Return the 95 % interval of a statistic of `values`, or None for fewer than two values.

    `statistic` maps [resamples, n] to [resamples]. The same values and seed give the same interval.
    """
    if len(values) < 2:
        return None
    data = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(data), size=(RESAMPLES, len(data)))
    low, high = np.quantile(statistic(data[picks]), [0.025, 0.975])
    return float(low), float(high)


def worst_decile(values: Sequence[float], *, higher_is_better: bool) -> float:
    """Return the mean of the worst tenth of `values`, at least one of them.

    >>> worst_decile([30.0, 31.0, 20.0], higher_is_better=True)
    20.0
    """
    ordered = sorted(values, reverse=not higher_is_better)
    worst = ordered[: math.ceil(len(ordered) / 10)]
    return sum(worst) / len(worst)


def estimate(values: Sequence[float], *, higher_is_better: bool = True) -> Estimate:
    """Summarise one number per sample; see Estimate for what happens to infinite ones and NaN."""
    finite = [value for value in values if math.isfinite(value)]
    broken = sum(math.isnan(value) for value in values)
    identical = len(values) - len(finite) - broken
    if not finite:
        return Estimate(None, None, None, None, len(values), identical, broken)
    low, high = bootstrap_interval(finite) or (None, None)
    return Estimate(
        mean=sum(finite) / len(finite),
        low=low,
        high=high,
        worst=worst_decile(finite, higher_is_better=higher_is_better),
        count=len(values),
        identical=identical,
        broken=broken,
    )
