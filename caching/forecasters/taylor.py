"""TaylorSeer: a Taylor polynomial whose derivatives are backward differences of computed values.

"From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", Liu et al. 2025
(arXiv:2503.06923). With anchors a_1 > a_2 > ... (newest first), k = t - a_1 and order O,
    D0(a_m) = F(a_m),   D(j+1)(a_m) = (Dj(a_m) - Dj(a_(m+1))) / (a_m - a_(m+1))
    F_hat(t) = sum_(j <= O) Dj(a_1) k^j / j!
D is linear in F, so the forecast is a weighted sum of the O + 1 newest anchors.

What it is exact on: polynomials of degree 1, at any spacing and any order. It is not exact on
quadratics, even with order 2 and even spacing h, because a backward difference is the slope half a
spacing back: on F = t^2 the forecast is off by -h k. `lagrange` is exact; TaylorSeer's bias damps
the extrapolation instead, which can help on noisy features.

Differs from the authors' code: the true anchor times divide every difference, so refreshes may be
unevenly spaced; with fewer than O + 1 anchors the order is lowered.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import Forecaster

__all__ = ["Taylor", "backward_differences", "taylor_weights"]


def backward_differences(times: Sequence[float], *, order: int) -> list[list[float]]:
    """Return what weight each anchor has in D0(a_1), D1(a_1), ... as far as `order` and anchors go.

    >>> backward_differences([4.0, 1.0], order=1)
    [[1.0, 0.0], [0.3333333333333333, -0.3333333333333333]]
    """
    used = min(order + 1, len(times))
    # differences[m][n] is the weight of F(a_n) in Dj(a_m), for the current j.
    differences = [[float(m == n) for n in range(len(times))] for m in range(used)]
    newest = []
    while differences:
        newest.append(differences[0])
        differences = [
            [
                (new - old) / (times[m] - times[m + 1])
                for new, old in zip(differences[m], differences[m + 1], strict=True)
            ]
            for m in range(len(differences) - 1)
        ]
    return newest


def taylor_weights(times: Sequence[float], at: float, *, order: int) -> list[float]:
    """Return the weights of the Taylor forecast at `at` from anchors at `times`, newest first.

    Anchors past `order` + 1 get weight 0.

    >>> taylor_weights([4.0, 1.0], 5.0, order=1)  # slope (F(4) - F(1)) / 3, one step on
    [1.3333333333333333, -0.3333333333333333]
    """
    k = at - times[0]
    forecast = [0.0] * len(times)
    for j, difference in enumerate(backward_differences(times, order=order)):
        for n, d in enumerate(difference):
            forecast[n] += d * k**j / math.factorial(j)
    return forecast


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Taylor(Forecaster):
    """Extrapolate along backward differences of the last computed values."""

    type: Annotated[Literal["taylor"], Field(description="Tag of this forecaster.")] = "taylor"
    order: Annotated[
        int, Field(ge=1, le=4, description="O: highest difference used; needs O + 1 values.")
    ] = 1

    @property
    def anchors(self) -> int:
        """Tell that O differences take O + 1 computed values."""
        return self.order + 1

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return the weights of the anchors, newest first."""
        return taylor_weights(times, at, order=self.order)
