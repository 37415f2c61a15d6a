"""HiCache: a Taylor forecast whose powers of the distance are scaled Hermite polynomials.

"HiCache: Training-free Acceleration of Diffusion Models via Hermite Polynomial-based Feature
Caching", Feng et al. 2025 (arXiv:2508.16984). It damps long extrapolations that TaylorSeer
overshoots; it fails, as every low-order forecast, where features turn within a skip.

With anchors a_1 > a_2 > ... (newest first), k = t - a_1 > 0, order O and the backward differences
Dj of `taylor`,
    H_0(x) = 1,   H_1(x) = 2x,   H_(n+1)(x) = 2x H_n(x) - 2n H_(n-1)(x)        physicists' Hermite
    H~_n(x) = sigma^n H_n(sigma x)
    F_hat(t) = F(a_1) + sum_(1 <= j <= O) Dj(a_1) H~_j(k) / j!
H~_1(k) = 2 sigma^2 k: sigma = 1/2 halves the slope, sigma = sqrt(1/2) keeps it and is exact on
lines at any spacing and order. The argument is +k. With -k the forecast runs backwards, which
pictures hide (it stays near reuse) and one line shows.

H~_2(k) = sigma^2 (4 sigma^2 k^2 - 2) is not zero at k = 0, so from order 2 on the forecast does not
start from F(a_1), and k counts steps, not any other unit of time.

Differs from the authors' code: sigma is 0.6 by default, theirs 0.5, which damps more than pays on
the reference model; the true anchor times divide every difference, so refreshes may be
unevenly spaced; with fewer than O + 1 anchors the order is lowered.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import Forecaster
from skipstep.caching.forecasters.taylor import backward_differences

__all__ = ["Hermite", "hermite", "hermite_weights"]


def hermite(n: int, x: float) -> float:
    """Return the physicists' Hermite polynomial H_n(x).

    >>> [hermite(n, 2.0) for n in range(4)]
    [1.0, 4.0, 14.0, 40.0]
    """
    before, now = 0.0, 1.0
    for m in range(n):
        before, now = now, 2 * x * now - 2 * m * before
    return now


def hermite_weights(times: Sequence[float], at: float, *, order: int, sigma: float) -> list[float]:
    """Return the weights of the Hermite forecast at `at` from anchors at `times`, newest first.

    Anchors past `order` + 1 get weight 0.

    >>> hermite_weights([4.0, 1.0], 7.0, order=1, sigma=0.5)  # half the slope, three steps on
    [1.5, -0.5]
    """
    k = at - times[0]
    forecast = [0.0] * len(times)
    for j, difference in enumerate(backward_differences(times, order=order)):
        scaled = sigma**j * hermite(j, sigma * k) / math.factorial(j)
        for n, d in enumerate(difference):
            forecast[n] += d * scaled
    return forecast


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Hermite(Forecaster):
    """Extrapolate along backward differences with Hermite polynomials in place of powers."""

    type: Annotated[Literal["hermite"], Field(description="Tag of this forecaster.")] = "hermite"
    order: Annotated[
        int, Field(ge=1, le=4, description="O: highest difference used; needs O + 1 values.")
    ] = 1
    sigma: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            allow_inf_nan=False,
            description="Scale; the slope counts 2 sigma^2 times, so 0.7071 is exact on lines.",
        ),
    ] = 0.6

    @property
    def anchors(self) -> int:
        """Tell that O differences take O + 1 computed values."""
        return self.order + 1

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return the weights of the anchors, newest first."""
        return hermite_weights(times, at, order=self.order, sigma=self.sigma)
