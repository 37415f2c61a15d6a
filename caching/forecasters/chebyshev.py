"""Spectrum: a ridge fit of Chebyshev polynomials to the last computed values of the whole run.

"Spectrum", CVPR 2026: adaptive spectral feature forecasting. It looks back over K values where
differences look back over two or three, so noise averages out and skips may grow long; it fails in
short runs with too few values to fit, and holds `window` tensors per feature. With T steps, anchors
a_1 .. a_K (the last K computed) and degree M,
    tau(t) = 2t / T - 1,   x(t) = [T_0(tau), ..., T_M(tau)],   T_(m+1) = 2 tau T_m - T_(m-1)
    C = (X' X + lambda I)^-1 X' F,   F_cheb(t) = x(t) C,       X = [x(a_1); ...; x(a_K)]
    F_newton(t) = F(a_1) + (t - a_1) (F(a_1) - F(a_2)) / (a_1 - a_2)
    F_hat(t) = w F_cheb(t) + (1 - w) F_newton(t)
C is linear in F, so F_cheb(t) = sum_j w_j F(a_j) with w = X (X' X + lambda I)^-1 x(t): K numbers
found on the host from K x M matrices; features are only summed.

A ridge fit is a smoother: it goes through no anchor exactly, and it shrinks, by about lambda / K,
also constants. With lambda = 0 (a pseudo-inverse then takes the place of the inverse) and more than
M anchors it is exact on polynomials of degree M.

Differs from the authors' code: tau takes the run's own number of steps, where theirs fixes 50; the
fit is never solved for features; K = 5 by default, theirs up to 10, which forecasts the reference
model better and holds half. With one anchor the forecast is reuse; where the number of steps
is not known tau runs from the oldest anchor to the forecast.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import pydantic
import torch
from pydantic import ConfigDict, Field

from skipstep.caching.base import Forecaster
from skipstep.caching.forecasters.lagrange import lagrange_weights

__all__ = ["Chebyshev", "chebyshev_row", "ridge_weights"]


def chebyshev_row(tau: float, degree: int) -> list[float]:
    """Return [T_0(tau), ..., T_degree(tau)].

    >>> chebyshev_row(0.5, 3)
    [1.0, 0.5, -0.5, -1.0]
    """
    row = [1.0, tau]
    for _ in range(degree - 1):
        row.append(2 * tau * row[-1] - row[-2])
    return row[: degree + 1]


def ridge_weights(taus: Sequence[float], tau: float, *, degree: int, penalty: float) -> list[float]:
    """Return w such that sum_j w_j F(taus[j]) is the ridge fit of F evaluated at `tau`.

    >>> [round(w, 3) for w in ridge_weights([1.0, 0.0, -1.0], 2.0, degree=1, penalty=0.0)]
    [1.333, 0.333, -0.667]
    """
    x = torch.tensor([chebyshev_row(t, degree) for t in taus], dtype=torch.float64)
    at = torch.tensor(chebyshev_row(tau, degree), dtype=torch.float64)
    normal = x.T @ x + penalty * torch.eye(degree + 1, dtype=torch.float64)
    weights: list[float] = (x @ (torch.linalg.pinv(normal, hermitian=True) @ at)).tolist()
    return weights


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Chebyshev(Forecaster):
    """Extrapolate a ridge fit of Chebyshev polynomials, mixed with the line through two values."""

    type: Annotated[Literal["chebyshev"], Field(description="Tag of this forecaster.")] = (
        "chebyshev"
    )
    degree: Annotated[int, Field(ge=1, le=8, description="M: highest Chebyshev polynomial.")] = 4
    penalty: Annotated[
        float, Field(ge=0, le=10, allow_inf_nan=False, description="lambda of the ridge fit.")
    ] = 0.1
    window: Annotated[
        int, Field(ge=2, le=32, description="K: last computed values that are fitted and held.")
    ] = 5
    mix: Annotated[
        float,
        Field(ge=0, le=1, allow_inf_nan=False, description="w: 1 is the fit, 0 the line alone."),
    ] = 0.5
    steps: Annotated[
        int | None, Field(ge=1, description="T: steps of a run; None takes the run's own.")
    ] = None

    @property
    def anchors(self) -> int:
        """Tell that K computed values are fitted."""
        return self.window

    def for_run(self, count: int, shape: tuple[int, ...]) -> Forecaster:
        """Return this forecaster with the run's number of steps."""
        return replace(self, steps=count) if self.steps is None and count else self

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return the weights of the anchors, newest first."""
        if len(times) == 1:
            return [1.0]
        start, length = (0.0, self.steps) if self.steps else (times[-1], at - times[-1])
        fit = ridge_weights(
            [2 * (t - start) / length - 1 for t in times],
            2 * (at - start) / length - 1,
            degree=self.degree,
            penalty=self.penalty,
        )
        line = lagrange_weights(times, at, order=2)
        return [self.mix * c + (1 - self.mix) * n for c, n in zip(fit, line, strict=True)]
