"""Dynamic mode decomposition, the forecaster of HiCache++: features as a sum of exponentials.

HiCache++, 2026; dynamic mode decomposition is Schmid 2010 (J. Fluid Mech.), in the exact form of
Tu et al. 2014 (J. Comput. Dyn.). It continues growth, decay and oscillation that polynomials miss;
it needs evenly spaced computed steps, and fails on noise. With the longest evenly spaced tail
F_0 .. F_(n-1) of computed values, n >= 4, spacing h, and k = t - a_1,
    X = [F_0 .. F_(n-2)],   X' = [F_1 .. F_(n-1)],   X = U S V'  (singular values above r S_1)
    A = U' X' V S^-1 = W diag(lambda) W^-1,   Phi = X' V S^-1 W,   b = Phi^+ F_(n-1)
    F_hat(t) = Re Phi (lambda^(k/h) b)
Exact on sums of up to n - 2 exponentials c^t with positive or complex c; with a negative real c
only at multiples of h, because a fractional power of it is not real.

Everything but X' lives in the n x n matrix of dot products G_ij = F_i . F_j: V and S^2 are eigen-
vectors and values of G without its last row and column. One row of the batch costs its dot
products, a synchronisation, and one weighted sum with weights that depend on its data.

The `fallback` order's polynomial (`lagrange`) stands in where the tail is shorter than four, the
features are zero or not finite, or modes are nearly parallel (cond W above 1e8).

Differs from the authors' code: singular vectors come from dot products in float64; what the modes
miss of F(a_1) is added back, so the forecast starts from the computed value; growth per step is
limited to `max_growth`.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
import torch
from jaxtyping import Float, Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import FeatureForecaster
from skipstep.caching.forecasters.lagrange import lagrange_weights
from skipstep.kernels.weighted_sum import weighted_sum

__all__ = ["DynamicModes", "dmd_weights", "dot_products", "even_tail"]

FEWEST = 4
WORST_CONDITION = 1e8


def even_tail(times: Sequence[float]) -> int:
    """Count the newest anchors that are evenly spaced.

    >>> even_tail([9.0, 7.0, 5.0, 2.0]), even_tail([4.0])
    (3, 1)
    """
    count = min(2, len(times))
    while count < len(times) and times[count - 1] - times[count] == times[0] - times[1]:
        count += 1
    return count


def dot_products(values: Sequence[Shaped[Tensor, "r ..."]]) -> Float[Tensor, "r n n"]:
    """Return F_i . F_j of every row, in float64 on the CPU."""
    flat = [value.flatten(1) for value in values]
    found = torch.zeros(flat[0].shape[0], len(flat), len(flat), dtype=torch.float64)
    for i, a in enumerate(flat):
        wide = a.double()
        for j, b in enumerate(flat[: i + 1]):
            found[:, i, j] = found[:, j, i] = (wide * b).sum(1).cpu()
    return found


def dmd_weights(
    dots: Float[Tensor, "n n"], ahead: float, *, rank_tolerance: float, max_growth: float
) -> list[float] | None:
    """Return the weights of F_0 .. F_(n-1), oldest first, for a forecast `ahead` spacings past
    F_(n-1); None where the modes say nothing.
    """
    n = dots.shape[0]
    if not bool(dots.isfinite().all()) or float(dots.diagonal().min()) <= 0:
        return None
    squares, v = torch.linalg.eigh(dots[:-1, :-1])
    keep = squares > rank_tolerance**2 * squares[-1]
    v, s = v[:, keep], squares[keep].sqrt()
    a = (v / s).T @ dots[:-1, 1:] @ (v / s)
    eigenvalues, w = torch.linalg.eig(a)
    if not float(torch.linalg.cond(w)) < WORST_CONDITION:
        return None
    modes = (v / s).to(w.dtype) @ w  # Phi = X' modes
    shifted = dots[1:, 1:].to(w.dtype)
    b = torch.linalg.pinv(modes.mH @ shifted @ modes, hermitian=True) @ (modes.mH @ shifted[:, -1])
    shrunk = eigenvalues * (max_growth / eigenvalues.abs().clamp(min=max_growth))
    change = (modes @ ((shrunk**ahead - 1) * b)).real
    weights = [0.0] * (n - 1) + [1.0]
    return [x + y for x, y in zip(weights, [0.0, *change.tolist()], strict=True)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DynamicModes(FeatureForecaster):
    """Continue each sample's own modes of growth, decay and oscillation."""

    type: Annotated[Literal["dmd"], Field(description="Tag of this forecaster.")] = "dmd"
    window: Annotated[
        int, Field(ge=4, le=16, description="Last computed values that are held and decomposed.")
    ] = 6
    rank_tolerance: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            allow_inf_nan=False,
            description="r: singular values below this share of the largest are noise.",
        ),
    ] = 1e-4
    max_growth: Annotated[
        float,
        Field(
            ge=1,
            allow_inf_nan=False,
            description="Largest growth of a mode from one computed step to the next.",
        ),
    ] = 2.0
    fallback: Annotated[
        int, Field(ge=1, le=4, description="Order of the polynomial where modes say nothing.")
    ] = 2

    @property
    def anchors(self) -> int:
        """Tell how many computed values are decomposed."""
        return self.window

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return the weights of the fallback, newest first."""
        return lagrange_weights(times, at, order=self.fallback)

    def forecast(
        self, times: Sequence[float], values: Sequence[Shaped[Tensor, "r ..."]], at: float
    ) -> Shaped[Tensor, "r ..."]:
        """Return every row's modes at time `at`, or its fallback."""
        fallback = self.weights(times, at)
        n = even_tail(times)
        if n < FEWEST:
            return weighted_sum(values, fallback)
        ahead = (at - times[0]) / (times[0] - times[1])
        older = [0.0] * (len(times) - n)
        table = []
        for dots in dot_products(values[:n][::-1]):
            row = dmd_weights(
                dots, ahead, rank_tolerance=self.rank_tolerance, max_growth=self.max_growth
            )
            table.append(fallback if row is None else row[::-1] + older)
        return weighted_sum(values, torch.tensor(table, dtype=torch.float64).T)
