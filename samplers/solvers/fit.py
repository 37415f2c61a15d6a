"""Fit a solver's numbers to a model: one small regression a step, on the solver's own states.

At step i the calibrated solver may use F = [x_i, u_i, u_{i-1}, ...] and should reach the state that
a fine solution of the same noise has at the next node, X. Its row of numbers is

  c = c_0 + argmin_d  sum_n w_n |X_n - F_n c_0 - F_n d|^2 + rho |D d|^2                          (1)

c_0 is a published formula's row, D the columns' spread (so rho has no unit), and n counts
trajectories; the sum runs over all their numbers, so the normal equations are at most 4 x 4. The
weights are Huber's, w_n = 1 / max(1, r_n / (1.5 median r)), renewed five times: a trajectory that
ends at another picture must not bend the row for the rest. The row is applied before the next one
is fitted, so later rows see, and mend, what earlier ones left.

Regressing solvers on trajectories is the idea of Bespoke Non-Stationary solvers (Shaul et al. 2024,
arXiv:2403.01329), which learn by gradients through the network; here nothing is differentiated.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from skipstep.samplers.solvers.adams import Formula, plan
from skipstep.samplers.solvers.conversions import to_kernel
from skipstep.samplers.solvers.paths import Path
from skipstep.samplers.solvers.sums import combined

__all__ = ["DenseTrajectory", "RowFitter", "base_rows", "fit_row"]

ROUNDS = 5
HUBER = 1.5
ROUNDING = 1e-9


@dataclass
class DenseTrajectory:
    """Hold fine solutions and read them anywhere: cubic Hermite in flow time t = sigma / (alpha +
    sigma), where y = x / (alpha + sigma) has the slope v = eps - x0.
    """

    path: Path
    times: list[float] = field(default_factory=list)
    states: list[Float[Tensor, "b ..."]] = field(default_factory=list)
    slopes: list[Float[Tensor, "b ..."]] = field(default_factory=list)

    def add(self, s: float, x: Float[Tensor, "b ..."], v: Float[Tensor, "b ..."]) -> None:
        """Note state and slope at s; nodes come in falling order."""
        alpha, sigma = self.path.alpha(s), self.path.sigma(s)
        self.times.append(sigma / (alpha + sigma))
        self.states.append(x / (alpha + sigma))
        self.slopes.append(v)

    def end(self, x: Float[Tensor, "b ..."]) -> None:
        """Note the clean end; it has no slope of its own, and none is needed behind it."""
        self.add(0.0, x, self.slopes[-1])

    def at(self, s: float) -> Float[Tensor, "b ..."]:
        """Return x at s.

        Raises ValueError outside the trajectory.
        """
        alpha, sigma = self.path.alpha(s), self.path.sigma(s)
        t = sigma / (alpha + sigma)
        if not self.times[-1] - ROUNDING <= t <= self.times[0] + ROUNDING:
            raise ValueError(f"s={s:.3g} is outside of the trajectory")
        t = min(t, self.times[0])
        i = max(j for j, time in enumerate(self.times) if time >= t)
        if i + 1 == len(self.times):
            return self.states[i] * (alpha + sigma)
        h = self.times[i + 1] - self.times[i]
        z = (t - self.times[i]) / h
        weights = (
            (1 + 2 * z) * (1 - z) ** 2,
            z * (1 - z) ** 2 * h,
            z * z * (3 - 2 * z),
            z * z * (z - 1) * h,
        )
        values = (self.states[i], self.slopes[i], self.states[i + 1], self.slopes[i + 1])
        y = combined(weights[0], values[0], weights[1:], values[1:])
        return y * (alpha + sigma)


def fit_row(
    features: Float[Tensor, "k b ..."],
    target: Float[Tensor, "b ..."],
    base: Sequence[float],
    *,
    ridge: float,
    fitted_on: Bool[Tensor, " b"] | None = None,
) -> Float64[Tensor, " k"]:
    """Return equation (1)'s row.

    Args:
        features: x and the values of u, newest first.
        base: the row to stay near.
        fitted_on: the trajectories that count; None is all of them.
    """
    rows = features.flatten(2).double()  # [k, b, d]
    start = torch.tensor(list(base), dtype=torch.float64, device=rows.device)
    rest = target.flatten(1).double() - torch.einsum("k,kbd->bd", start, rows)
    spread = rows.pow(2).mean((1, 2)).sqrt().clamp_min(1e-12)
    scaled = rows / spread[:, None, None]
    grams = torch.einsum("kbd,lbd->bkl", scaled, scaled) / scaled.shape[2]
    sides = torch.einsum("kbd,bd->bk", scaled, rest) / scaled.shape[2]
    squares = rest.pow(2).mean(1)
    chosen = torch.ones(len(squares), dtype=torch.bool) if fitted_on is None else fitted_on
    grams, sides, squares = (each[chosen.to(each.device)] for each in (grams, sides, squares))
    eye = ridge * torch.eye(len(start), dtype=torch.float64, device=rows.device)
    weights = torch.ones_like(squares)
    change = torch.zeros_like(start)
    for _ in range(ROUNDS):
        total = weights.sum()
        gram = torch.einsum("b,bkl->kl", weights, grams) / total
        side = torch.einsum("b,bk->k", weights, sides) / total
        change = torch.linalg.solve(gram + eye, side)
        left = squares - 2 * sides @ change + torch.einsum("k,bkl,l->b", change, grams, change)
        r = left.clamp_min(0).sqrt()
        weights = 1 / (r / (HUBER * r.median() + 1e-12)).clamp_min(1.0)
    return (start + change / spread).cpu()


def base_rows(
    formula: Formula, path: Path, nodes: Sequence[float], history: int
) -> list[list[float]]:
    """Return a formula's rows [weight of x, weights of u ...], `history` values of u at most."""
    rows = []
    for i, move in enumerate(plan(formula, path, nodes)):
        length = min(history, i + 1)
        weights = [*move.weights, *([0.0] * length)]
        rows.append([move.anchor, *weights[:length]])
    return rows


@dataclass
class RowFitter:
    """Fit a solver step by step while something else evaluates the network at its states.

    `truth` has the states that the nodes should show, `bases` the rows to stay near.
    """

    path: Path
    formula: Formula
    nodes: Sequence[float]
    truth: Sequence[Float[Tensor, "b ..."]]
    history: int = 3
    ridge: float = 1e-3
    fitted_on: Bool[Tensor, " b"] | None = None
    prediction: str = "epsilon"
    sigma_data: Any = None
    rows: list[tuple[float, ...]] = field(default_factory=list)
    memory: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the rows to stay near."""
        self.bases = base_rows(self.formula, self.path, self.nodes, self.history)

    def advance(
        self, i: int, x: Float[Tensor, "b ..."], output: Float[Tensor, "b ..."]
    ) -> Float[Tensor, "b ..."]:
        """Fit row i with the network's `output` at x, and return where it leads."""
        kernel, s = self.formula.kernel, self.nodes[i]
        p, q = to_kernel(kernel, self.path, s, self.prediction, self.sigma_data)
        u = combined(p, x, (q,), (output,))
        self.memory = [u, *self.memory][: self.history]
        features = torch.stack([x, *self.memory])
        row = fit_row(
            features, self.truth[i + 1], self.bases[i], ridge=self.ridge, fitted_on=self.fitted_on
        )
        self.rows.append(tuple(row.tolist()))
        return combined(self.rows[-1][0], x, self.rows[-1][1:], self.memory)
