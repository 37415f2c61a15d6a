"""Lagrange: the polynomial through the last computed values, evaluated at the skipped step.

The forecaster of AB-Cache, "AB-Cache: Training-Free Acceleration of Diffusion Models via
Adams-Bashforth Cached Feature Reuse", Yu et al. 2025 (arXiv:2504.10540): a k-th order relation of
neighbouring outputs with error O(h^k). With k anchors a_1 > a_2 > ... (newest first),
    F_hat(t) = sum_j c_j F(a_j),   c_j = prod_(m != j) (t - a_m) / (a_j - a_m)
Exact on polynomials of degree k - 1 at any spacing. At even spacing, one step on, the weights are
(-1)^(j+1) C(k, j): 1; 2, -1; 3, -3, 1; 4, -6, 4, -1.
Noise of the anchors is amplified by up to sum|c_j| (3, 7, 15 for k = 2, 3, 4 one step on), so
orders above 2 pay only over short skips.

Newton's form of extrapolation, F(a_1) + (t - a_1) F[a_1, a_2] + (t - a_1)(t - a_2) F[a_1, a_2, a_3]
+ ... with divided differences, is the same polynomial written otherwise: through k points there is
one of degree k - 1. It has no file of its own.

Differs from the authors' code: the paper's abstract states the order of the error and no
coefficients; the form above is the one linear form that has this order at any spacing. With fewer
than k anchors the order is lowered.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import Forecaster

__all__ = ["Lagrange", "lagrange_weights"]


def lagrange_weights(times: Sequence[float], at: float, *, order: int) -> list[float]:
    """Return the weights of the polynomial through the `order` newest anchors, evaluated at `at`.

    Anchors past `order` get weight 0.

    >>> lagrange_weights([3.0, 2.0, 1.0], 4.0, order=3)
    [3.0, -3.0, 1.0]
    """
    used = times[:order]
    weights = [
        math.prod((at - m) / (a - m) for n, m in enumerate(used) if n != j)
        for j, a in enumerate(used)
    ]
    return [float(w) for w in weights] + [0.0] * (len(times) - len(used))


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Lagrange(Forecaster):
    """Extrapolate the polynomial through the last computed values."""

    type: Annotated[Literal["lagrange"], Field(description="Tag of this forecaster.")] = "lagrange"
    order: Annotated[
        int, Field(ge=1, le=4, description="k: values the polynomial goes through; 1 is reuse.")
    ] = 2

    @property
    def anchors(self) -> int:
        """Tell that order k takes k computed values."""
        return self.order

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return the weights of the anchors, newest first."""
        return lagrange_weights(times, at, order=self.order)
