"""FoCa: forecast a feature as the solution of an ODE, then correct the forecast.

"Forecast then Calibrate: Feature Caching as ODE for Efficient Diffusion Transformers", Zheng et al.
2025 (arXiv:2508.16211). A BDF2 step predicts, a Heun step corrects. It is milder than a quadratic
extrapolation over long skips; it fails on noisy features, whose second difference it uses.

Derived here for uneven anchors a_1 > a_2 > a_3 (newest first), h = a_1 - a_2, k = t - a_1 and
omega = k / h. With divided differences d = F[a_1, a_2] and s = F[a_1, a_2, a_3], the slope at the
newest anchor is that of the quadratic through all three,
    f_1 = d + h s
Predictor: BDF2 is the quadratic through (a_2, F_2) and (a_1, F_1) with a given slope f at t; its
value there, with f_1 for f, is
    F_p = ((1 + omega)^2 F_1 - omega^2 F_2 + (1 + omega) k f_1) / (1 + 2 omega)
which for omega = 1 is the known 4/3 F_1 - 1/3 F_2 + 2/3 h f.
Corrector: Heun averages the slopes at both ends; the far one is the mean slope to F_p,
    f_p = (F_p - F_1) / k,   F_hat(t) = F_1 + k/2 (f_1 + f_p)
Put together, F_hat(t) = F_1 + k d + k h s (2 + 3 omega) / (2 + 4 omega), one weighted sum.
Exact on polynomials of degree 1 at any spacing. On F = t^2 it is off by
-k^2 - k h omega / (2 + 4 omega), so it turns less than `lagrange` of order 3.

Two other readings give no method of their own. A two-point slope for f_1 makes predictor and
corrector both the straight line (`lagrange` of order 2). The three-point slope at t for f_p is f_1
again, because BDF2 was built on it.

Differs from the authors' code: every slope is divided by the true distance of its anchors; how the
paper discretises the slopes is not stated in what we have, so the above is our derivation. With two
anchors the forecast is a line, with one it is reuse.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import Forecaster
from skipstep.caching.forecasters.lagrange import lagrange_weights

__all__ = ["FoCaForecaster", "divided_difference", "foca_weights"]


def foca_weights(times: Sequence[float], at: float) -> list[float]:
    """Return the weights of the corrected forecast at `at` from anchors at `times`, newest first.

    Anchors past the third get weight 0.

    >>> [round(w, 4) for w in foca_weights([4.0, 2.0, 0.0], 6.0)]
    [2.4167, -1.8333, 0.4167]
    """
    used = list(times[:3])
    k = at - used[0]
    if len(used) < 3:
        weights = lagrange_weights(used, at, order=2)
    else:
        h, omega = used[0] - used[1], k / (used[0] - used[1])
        d, s = divided_difference(used[:2]), divided_difference(used)
        slope = [x + h * y for x, y in zip([*d, 0.0], s, strict=True)]  # f_1
        newest = ((1 + omega) ** 2, -(omega**2), 0.0)
        predicted = [
            (f + (1 + omega) * k * f_1) / (1 + 2 * omega)
            for f, f_1 in zip(newest, slope, strict=True)
        ]
        # F_1 + k/2 (f_1 + (F_p - F_1) / k) without the division, so that k may be 0.
        weights = [
            (f + k * f_1 + f_p) / 2
            for f, f_1, f_p in zip((1.0, 0.0, 0.0), slope, predicted, strict=True)
        ]
    return weights + [0.0] * (len(times) - len(used))


def divided_difference(times: Sequence[float]) -> list[float]:
    """Return the weight of each anchor in the divided difference over all of them.

    >>> divided_difference([3.0, 1.0])
    [0.5, -0.5]
    """
    return [
        1 / math.prod(a - m for n, m in enumerate(times) if n != j) for j, a in enumerate(times)
    ]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FoCaForecaster(Forecaster):
    """Predict by BDF2 and correct by Heun's rule."""

    type: Annotated[Literal["foca"], Field(description="Tag of this forecaster.")] = "foca"

    @property
    def anchors(self) -> int:
        """Tell that slope and predictor take three computed values."""
        return 3

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return the weights of the anchors, newest first."""
        return foca_weights(times, at)
