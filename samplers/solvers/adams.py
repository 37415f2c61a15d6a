"""Exponential Adams methods: every multistep solver of this package is one row of numbers a step.

On any path the sampling equation is dy/dkappa = u in three pairs of coordinates:

  kernel   y = x / n, n =   kappa =               u =          what is held constant by order 1
  x0       sigma            alpha / sigma = 1/s   x0           the picture     (DDIM, DPM-Solver++)
  eps      alpha            sigma / alpha = s     eps          the noise       (DDIM, PNDM, DEIS)
  v        alpha + sigma    sigma / (alpha+sigma) eps - x0     the flow        (Euler on a flow)

A step from s to s' with u known at nodes s_0 = s, s_1, ... extrapolates u by Lagrange's polynomials
l_j in a variable tau(s) and integrates exactly what is left:

  y' = y + sum_j c_j u_j,   c_j = int_s^s' l_j(tau) dkappa                                       (1)
  x' = (n'/n) x + n' sum_j c_j u_j                                                               (2)

The corrector (UniC, Zhao et al. 2023, arXiv:2302.04867) does a step again, as soon as the network
was asked at its end, with that node among the others, weights c'_j. No evaluation, and no state to
keep either: the step's end moves by the difference, which joins the next step's own sum.

  x += n' (c'_0 u_0 + sum_j (c'_(j+1) - c_j) u_(j+1))                                            (3)
A start-up replaces the first steps, where (1) has no history, by a Runge-Kutta step: without it a
third-order method is of second order, because the first step's error stays.

Integrals are 48-point Gauss-Legendre sums in float64; c_0 is what is missing to the integral of 1,
so constants are exact. Differs from the authors' codes: no closed forms, any tau with any kernel.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

from skipstep.samplers.solvers.paths import Path

__all__ = ["Formula", "Kernel", "Move", "Rule", "StartUp", "Variable", "adams_weights", "plan"]

Kernel = Literal["x0", "eps", "v"]
Variable = Literal["lambda", "sigma", "flow", "alpha_bar", "atan", "log_shift", "time", "index"]
Rule = Literal["exact", "midpoint", "dpmpp"]
StartUp = Literal["none", "heun", "pndm", "rk4"]

FARTHEST = 1e4
"""Where s = infinity counts as for variables and integrals that are not finite there."""
LOG_SHIFT = 0.1
POINTS, POINT_WEIGHTS = np.polynomial.legendre.leggauss(48)
Array = Float64[ndarray, " _"]

TAU: dict[str, Callable[[Array], Array]] = {
    "lambda": lambda s: -np.log(s),
    "sigma": lambda s: s,
    "flow": lambda s: 1 - 1 / (1 + s),
    "alpha_bar": lambda s: 1 / (1 + s * s),
    "atan": np.arctan,
    "log_shift": lambda s: np.log(s + LOG_SHIFT),
}


@dataclass(frozen=True)
class Formula:
    """Name one member of the family; `presets.py` has those that were published."""

    kernel: Kernel = "x0"
    variable: Variable = "lambda"
    order: int = 2
    corrector: bool = False
    rule: Rule = "exact"
    start_up: StartUp = "none"
    taper_below: int = 10_000
    """With fewer steps than this the last steps have no more order than steps are left."""


@dataclass(frozen=True)
class Move:
    """What the scheduler does after one evaluation: a linear combination, newest u first.

    x' = anchor * base + sum_j weights[j] * u_j, where `base` is x at the start of the step. `ends`
    says that x' is the base of the next step; `forget` drops so many of the newest u then.
    `correction` are the weights of (3), which `weights` hold already: base plus their sum is the
    corrected state.
    """

    s: float
    anchor: float
    weights: tuple[float, ...]
    ends: bool = True
    forget: int = 0
    correction: tuple[float, ...] = ()


def kappa(kernel: Kernel, s: float) -> float:
    """Return the kernel's coordinate at s."""
    if kernel == "eps":
        return s
    if kernel == "x0":
        return math.inf if s == 0 else 1 / s
    return 1.0 if math.isinf(s) else s / (1 + s)


def scale(kernel: Kernel, path: Path, s: float) -> float:
    """Return n of the kernel at s."""
    alpha, sigma = path.alpha(s), path.sigma(s)
    return {"x0": sigma, "eps": alpha, "v": alpha + sigma}[kernel]


def tau(variable: Variable, path: Path, s: Array) -> Array:
    """Return the extrapolation variable at each s."""
    if variable == "time" and path.kind != "flow":
        return np.array([path.time(float(each)) for each in s])
    if variable in ("flow", "time"):
        return TAU["flow"](s)
    if variable in ("lambda", "sigma", "log_shift"):
        s = np.minimum(s, FARTHEST)
    with np.errstate(divide="ignore"):
        return TAU[variable](s)


def lagrange(nodes: Array, at: Array) -> list[Array]:
    """Return the value of every Lagrange polynomial of the nodes at some places.

    >>> [each.tolist() for each in lagrange(np.array([0.0, -1.0]), np.array([1.0]))]
    [[2.0], [-1.0]]
    """
    found = []
    for j, node in enumerate(nodes):
        others = np.delete(nodes, j)
        found.append(np.prod([(at - other) / (node - other) for other in others], axis=0) + 0 * at)
    return found


def integrals(values: Callable[[Array], list[Array]], kernel: Kernel, s: float, to: float) -> Array:
    """Return the integral of each function of s over kappa, from s to `to`."""
    y, w = (POINTS + 1) / 2, POINT_WEIGHTS / 2
    start = min(s, FARTHEST)
    if kernel == "x0":
        span = math.log(start / to)
        places = start * np.exp(-span * y)
        w = w * span / places
    elif kernel == "eps":
        # s = start - (start - to) (1 - (1 - y)^2): denser at the end, where log s may be steep.
        places = to + (start - to) * (1 - y) ** 2
        w = w * (to - start) * 2 * (1 - y)
    else:
        t = kappa("v", s) + (kappa("v", to) - kappa("v", s)) * y
        places = t / (1 - t)
        w = w * (kappa("v", to) - kappa("v", s))
    return np.array([float((w * each).sum()) for each in values(places)])


def adams_weights(
    formula: Formula, path: Path, nodes: Sequence[float], s: float, to: float
) -> tuple[float, ...]:
    """Return n' c_j of equation (2) for each of the nodes, newest first."""
    kernel, variable = formula.kernel, formula.variable
    total = whole_weight(kernel, path, s, to)
    if len(nodes) == 1:
        return (total,)
    if variable == "index":
        # The corrector's newest node is the end of the step, the predictor's is its start.
        steps = float(nodes[0] < s) - np.arange(len(nodes), dtype=np.float64)
        y, w = (POINTS + 1) / 2, POINT_WEIGHTS / 2
        shares = np.array([float((w * each).sum()) for each in lagrange(steps, y)])
    else:
        known = tau(variable, path, np.array(nodes))
        if kernel == "x0" and to == 0:
            at_end = lagrange(known, tau(variable, path, np.zeros(1)))
            shares = np.array([float(each[0]) for each in at_end])
        elif formula.rule != "exact" and len(nodes) == 2:
            middle = tau(variable, path, np.array([s, to])).mean(keepdims=True)
            shares = np.array(lagrange(known, middle))[:, 0]
        else:
            shares = integrals(
                lambda places: lagrange(known, tau(variable, path, places)), kernel, s, to
            )
            if formula.rule == "dpmpp" and len(nodes) == 3:
                shares = halved_curvature(shares, known, formula, path, s, to)
            shares = shares * scale(kernel, path, to) / total
    shares[0] = 1 - shares[1:].sum()
    return tuple(total * float(each) for each in shares)


def whole_weight(kernel: Kernel, path: Path, s: float, to: float) -> float:
    """Return n' (kappa' - kappa), the weight of a constant u; finite also at s' = 0."""
    if kernel == "x0":
        remains = 0.0 if math.isinf(s) else path.sigma(to) * path.alpha(s) / path.sigma(s)
        return path.alpha(to) - remains
    return scale(kernel, path, to) * (kappa(kernel, to) - kappa(kernel, s))


def halved_curvature(
    parts: Array, known: Array, formula: Formula, path: Path, s: float, to: float
) -> Array:
    """Return DPM-Solver++(3M)'s weights: its quadratic term has half of Taylor's weight.

    u(tau) = u_0 + u' (tau - tau_0) + u'' / 2 (tau - tau_0)^2, with both derivatives at tau_0 from
    the three values; Lagrange's integral has the last term whole, the published update halves it.
    """
    square = integrals(
        lambda places: [(tau(formula.variable, path, places) - known[0]) ** 2],
        formula.kernel,
        s,
        to,
    )[0]
    curvature = np.array(
        [1 / np.prod([known[j] - known[k] for k in range(3) if k != j]) for j in range(3)]
    )
    found: Array = parts - square * curvature / 2
    return found


def plan(formula: Formula, path: Path, nodes: Sequence[float]) -> list[Move]:
    """Return the moves from nodes[0] to nodes[-1] = 0, one an evaluation.

    Raises ValueError where the formula does not exist on this path.
    """
    if formula.kernel == "eps" and math.isinf(nodes[0]):
        raise ValueError(
            "kernel='eps' divides by alpha = 0 at the start of a flow: use kernel='v', which is "
            "the same method in the flow's coordinates"
        )
    moves: list[Move] = []
    known: list[float] = []
    before: float | None = None
    weights: tuple[float, ...] = ()
    order = 1
    count = len(nodes) - 1
    for i, (s, to) in enumerate(zip(nodes, nodes[1:], strict=False)):
        correction: tuple[float, ...] = ()
        if formula.corrector and before is not None:
            # One node more than the predictor had; its step began at `before`.
            again = adams_weights(formula, path, [s, *known[:order]], before, s)
            correction = summed(again, (0.0, *(-w for w in weights)))  # (3)
        known = [s, *known][: formula.order]
        if i < start_up_steps(formula) and to > 0:
            moves += start_up_moves(formula, path, s, to, len(known) - 1)
            before = None
            continue
        order = min(formula.order, len(known))
        if count < formula.taper_below:
            order = min(order, count - i)
        if to == 0 and not is_finite_at_zero(formula):
            order = 1
        weights = adams_weights(formula, path, known[:order], s, to)
        anchor = step_ratio(formula, path, s, to)
        shared = summed(weights, tuple(anchor * w for w in correction))
        moves.append(Move(s, anchor, shared, correction=correction))
        before = s
    return moves


def summed(a: tuple[float, ...], b: tuple[float, ...]) -> tuple[float, ...]:
    """Return the sum of two rows of weights, of which one may be shorter."""
    return tuple(x + y for x, y in zip_longest(a, b, fillvalue=0.0))


def step_ratio(formula: Formula, path: Path, s: float, to: float) -> float:
    """Return n'/n of equation (2)."""
    return scale(formula.kernel, path, to) / scale(formula.kernel, path, s)


def is_finite_at_zero(formula: Formula) -> bool:
    """Tell whether the extrapolation reaches s = 0: ln s does not."""
    return formula.variable != "lambda" or formula.order == 1


def start_up_steps(formula: Formula) -> int:
    """Return how many steps the start-up replaces."""
    return {"none": 0, "heun": 1}.get(formula.start_up, formula.order - 1)


def start_up_moves(formula: Formula, path: Path, s: float, to: float, older: int) -> list[Move]:
    """Return the moves of one Runge-Kutta step; only its first u enters the history.

    "heun" (S-PNDM) and "pndm" (F-PNDM, Liu et al. 2022, arXiv:2202.09778) put averages of u into
    the order-1 step, with the middle at the mean network time; "rk4" is Runge's method on
    dy/dtheta = u dkappa/dtheta, theta = ln s, which is of fourth order whatever the nodes.
    """
    kernel = formula.kernel
    middle = path.at_time((path.time(s) + path.time(to)) / 2)
    if formula.start_up == "rk4":
        middle = math.sqrt(min(s, FARTHEST) * to)
    if formula.start_up == "heun":
        places, shares = [s, to], [[1.0], [0.5, 0.5]]
    else:
        places = [s, middle, middle, to]
        shares = [[1.0], [0.0, 1.0], [0.0, 0.0, 1.0], [1 / 6, 1 / 3, 1 / 3, 1 / 6]]
    targets = [*places[1:], to]
    h = math.log(to / min(s, FARTHEST))
    moves = []
    for k, (place, target, share) in enumerate(zip(places, targets, shares, strict=True)):
        if formula.start_up == "rk4":
            length = h if target == to else h / 2
            slopes = [kappa_slope(kernel, each) * length for each in places]
        else:
            slopes = [kappa(kernel, target) - kappa(kernel, s)] * len(places)
        n = scale(kernel, path, target)
        weights = [n * c * slope for c, slope in zip(share, slopes, strict=False)]
        is_last = k == len(places) - 1
        moves.append(
            Move(
                place,
                step_ratio(formula, path, s, target),
                tuple(reversed(weights)),
                ends=is_last,
                forget=k if is_last else 0,
            )
        )
    return moves


def kappa_slope(kernel: Kernel, s: float) -> float:
    """Return dkappa / dln s."""
    return {"x0": -1 / s, "eps": s, "v": s / (1 + s) ** 2}[kernel]
