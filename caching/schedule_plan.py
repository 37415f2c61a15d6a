"""Plan which steps to compute, from one instrumented run a prompt, for any budget and forecaster.

After LeMiCa, "Lexicographic Minimax Path Caching", Gao et al. 2025: the steps are nodes, an edge
i -> j says that i + 1 .. j - 1 are skipped, and dynamic programming finds the path of B nodes whose
edges cost least. LeMiCa reuses the newest value, so an edge's cost depends on its two ends. A
forecaster with n anchors looks at the last n computed steps, so here a node is the tuple
a_1 > .. > a_n of the newest anchors, and for a skipped step k between a_1 and the next computed j
    e_k(a) = s_k sqrt(mean over trajectories of |sum_m w_m F(a_m) - F_k|^2 / mean_i |F_i|^2)   (1)
    V(j, a_1 .. a_(n-1)) = min over a_n of V(a_1 .. a_n) (+) the e_k, a_1 < k < j                (2)
with (+) the sum, the sum of squares or the maximum ("minimax"; equal maxima are told apart by their
sums). Time grows as T^(n+1) B: a second for n = 2 and T = 50. Forecasters with more anchors than
MOST_ANCHORS are planned as if they had these; beyond LONG_RUN steps and with n = 3, at most LONGEST
steps lie between two anchors.

s_k says what an error at step k does to the picture; it is 1 unless given.
|...|^2 follows from the Gram matrices of `skipstep.caching.trajectory`, so no tensor is needed. The
errors are those on the uncached trajectory: that a skip changes the inputs after it is not seen.

Differs from LeMiCa: costs are measured on features in one run, not on pictures in T^2 / 2 of them;
the forecast may have any order; ties of the maximum are broken by the sum and not by the rest of
the sorted list; a budget means "at most", so the planned error never grows with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor

from skipstep.caching.base import Forecaster
from skipstep.caching.forecasters.fitted import Fitted, fit_weights
from skipstep.caching.gates.schedule import Schedule

__all__ = [
    "MOST_ANCHORS",
    "Objective",
    "fitted_weights",
    "forecast_errors",
    "path_error",
    "plan_schedule",
    "plan_schedules",
]

Objective = Literal["sum", "squares", "minimax"]

MOST_ANCHORS = 3
LONG_RUN = 60
LONGEST = 16

State = tuple[int, ...]
Array = NDArray[np.float64]


def forecast_errors(
    grams: Float[Tensor, "n t t"],
    forecaster: Forecaster,
    anchors: Sequence[int],
    steps: Sequence[int],
) -> Float[Tensor, " k"]:
    """Return the root mean square error of forecasting `steps` from `anchors`, newest first."""
    if not steps:
        return torch.zeros(0, dtype=torch.float64)
    gram = grams.mean(0)
    w = torch.nn.functional.pad(weights_at(forecaster, gram, anchors, steps), (0, 1), value=-1.0)
    # c of c^T G c on anchors and the step itself, [k, m + 1]
    index = torch.tensor([[*anchors, k] for k in steps])
    local = gram[index[:, :, None], index[:, None, :]]  # [k, m + 1, m + 1]
    squares = (w[:, :, None] * local * w[:, None, :]).sum((1, 2))
    return squares.clamp_min(0).sqrt()


def weights_at(
    forecaster: Forecaster, gram: Float[Tensor, "t t"], anchors: Sequence[int], steps: Sequence[int]
) -> Float64[Tensor, "k m"]:
    """Return the weights of `anchors` in the forecast of each of `steps`; `fitted` ones are found
    here.
    """
    if isinstance(forecaster, Fitted):
        return fit_weights(gram, anchors, steps, noise=forecaster.noise)
    times = [float(a) for a in anchors]
    return torch.tensor([forecaster.weights(times, float(k)) for k in steps], dtype=torch.float64)


def fitted_weights(
    grams: Float[Tensor, "n t t"], schedule: Schedule, forecaster: Fitted
) -> tuple[tuple[float, ...], ...]:
    """Return the weights of a schedule's skipped steps, in their order, to a millionth."""
    gram, found = grams.double().mean(0), []
    for step, anchors in schedule.skipped():
        w = fit_weights(gram, anchors[: forecaster.values], [step], noise=forecaster.noise)
        found.append(tuple(round(weight, 6) for weight in w[0].tolist()))
    return tuple(found)


def plan_schedule(
    grams: Float[Tensor, "n t t"],
    count: int,
    forecaster: Forecaster,
    *,
    objective: Objective = "sum",
    weights: Sequence[float] | None = None,
) -> tuple[int, ...]:
    """Return at most `count` steps to compute, ascending from 0, of a run of t steps.

    Args:
        grams: the trajectories' Gram matrices (`TrajectoryRecord.grams`).
        count: most computed steps, 1 to t.
        forecaster: what stands in for skipped steps.
        objective: how errors add up over the skipped steps, see (2).
        weights: s_k of (1), one a step, positive; None is 1 everywhere.
    """
    plans = plan_schedules(grams, [count], forecaster, objective=objective, weights=weights)
    return plans[count]


def plan_schedules(
    grams: Float[Tensor, "n t t"],
    counts: Sequence[int],
    forecaster: Forecaster,
    *,
    objective: Objective = "sum",
    weights: Sequence[float] | None = None,
) -> dict[int, tuple[int, ...]]:
    """Return a schedule for each budget of `counts`, as `plan_schedule`; errors are found once."""
    s = check(grams, counts, weights)
    table = _Errors(grams, forecaster, s)
    if objective != "minimax":
        power = 2 if objective == "squares" else 1
        found = _shortest(table, max(counts), power=power, limit=math.inf)
        return {count: found.path(count) for count in counts}
    largest = _shortest(table, max(counts), power=math.inf, limit=math.inf)
    return {
        count: _shortest(table, count, power=1, limit=largest.cost(count)).path(count)
        for count in counts
    }


def check(
    grams: Float[Tensor, "n t t"], counts: Sequence[int], weights: Sequence[float] | None
) -> Array:
    """Return the weights as an array; raise ValueError for what cannot be planned."""
    steps = grams.shape[-1]
    if grams.ndim != 3 or grams.shape[1] != steps or 0 in grams.shape:
        raise ValueError(f"grams of shape {tuple(grams.shape)}: must be [trajectories, t, t]")
    if not bool(torch.isfinite(grams).all()):
        raise ValueError("grams hold values that are not finite: record the runs again")
    for count in counts:
        if not 1 <= count <= steps:
            raise ValueError(
                f"count={count} is not allowed: a run of {steps} computes 1 to {steps}"
            )
    s = np.ones(steps) if weights is None else np.asarray(weights, dtype=np.float64)
    if s.shape != (steps,) or not (np.isfinite(s).all() and (s > 0).all()):
        raise ValueError(f"weights must be {steps} positive numbers, one a step")
    return s


class _Errors:
    """Eq. (1), found when first asked for: state -> the errors of steps a_1 + 1 .. T - 1."""

    def __init__(self, grams: Tensor, forecaster: Forecaster, weights: Array) -> None:
        self.gram = grams.double().mean(0, keepdim=True)
        self.forecaster = forecaster
        self.weights = weights
        self.steps = grams.shape[-1]
        self.anchors = min(forecaster.anchors, MOST_ANCHORS)
        self.known: dict[State, Array] = {}

    def of(self, state: State) -> Array:
        if state not in self.known:
            later = range(state[0] + 1, self.steps)
            errors = forecast_errors(self.gram, self.forecaster, state, later).numpy()
            self.known[state] = errors * self.weights[state[0] + 1 :]
        return self.known[state]


@dataclass
class _Paths:
    """What the dynamic programme found: the best end of a path for every number of steps."""

    ends: list[tuple[float, State]]
    parents: dict[State, NDArray[np.int16]]
    anchors: int

    def cost(self, count: int) -> float:
        return min(cost for cost, _ in self.ends[1 : count + 1])

    def path(self, count: int) -> tuple[int, ...]:
        """Walk back from the cheapest end of at most `count` steps, of equals the shortest."""
        used = min(range(1, count + 1), key=lambda b: (self.ends[b][0], b))
        state, path = self.ends[used][1], list[int]()
        while len(path) < used:
            path.append(state[0])
            rest = state[1:]
            dropped = self.parents[rest][state[0], used - len(path) + 1]
            state = rest if dropped < 0 else (*rest, int(dropped))
        return tuple(reversed(path))


def _shortest(table: _Errors, most: int, *, power: float, limit: float) -> _Paths:
    """Run Eq. (2) over all numbers of computed steps up to `most`.

    The value of a state (a_1, *rest) with b computed steps is best[rest][a_1, b]. Errors above
    `limit` are forbidden.
    """
    steps, n = table.steps, table.anchors
    longest = LONGEST if n > 2 and steps > LONG_RUN else steps
    best: dict[State, Array] = {(): np.full((steps, most + 1), np.inf)}
    parents: dict[State, NDArray[np.int16]] = {(): np.full((steps, most + 1), -1, np.int16)}
    best[()][0, 1] = 0.0
    ends: list[tuple[float, State]] = [(math.inf, (0,))] * (most + 1)
    for newest in range(steps):
        for rest in list(best):
            value = best[rest][newest]
            if not np.isfinite(value).any():
                continue
            state = (newest, *rest)
            edge = _edges(table.of(state), power, limit)
            add = np.maximum if math.isinf(power) else np.add
            final = add(value, edge[-1])
            for b in np.flatnonzero(final < [cost for cost, _ in ends]):
                ends[b] = float(final[b]), state
            if newest == steps - 1:
                continue
            key = state[: n - 1]
            if key not in best:
                best[key] = np.full((steps, most + 1), np.inf)
                parents[key] = np.full((steps, most + 1), -1, np.int16)
            end = min(steps, newest + 1 + longest)
            costs = edge[: end - newest - 1, None]
            reached = add(value[None, :-1], costs)  # [next computed step, steps used before]
            old = best[key][newest + 1 : end, 1:]
            is_better = reached < old
            old[is_better] = reached[is_better]
            parents[key][newest + 1 : end, 1:][is_better] = state[-1] if len(state) == n else -1
    return _Paths(ends, parents, n)


def _edges(errors: Array, power: float, limit: float) -> Array:
    """Return the cost of going to each later step: entry g skips the first g errors."""
    errors = np.where(errors > limit, np.inf, errors)
    costs = np.zeros(len(errors) + 1)
    costs[1:] = np.maximum.accumulate(errors) if math.isinf(power) else np.cumsum(errors**power)
    return costs


def path_error(
    grams: Float[Tensor, "n t t"],
    schedule: Sequence[int],
    forecaster: Forecaster,
    *,
    objective: Objective = "sum",
    weights: Sequence[float] | None = None,
) -> float:
    """Return what `plan_schedule` minimises, for one schedule."""
    table = _Errors(grams, forecaster, check(grams, [len(schedule)], weights))
    errors: list[float] = []
    for number, newest in enumerate(schedule):
        after = schedule[number + 1] if number + 1 < len(schedule) else table.steps
        state = tuple(reversed(schedule[max(0, number + 1 - table.anchors) : number + 1]))
        errors += table.of(state)[: after - newest - 1].tolist()
    if objective == "minimax":
        return max(errors, default=0.0)
    return sum(error**2 if objective == "squares" else error for error in errors)
