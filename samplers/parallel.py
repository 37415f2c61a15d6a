"""Parallel in time: all steps of a walk at once, again and again, until nothing moves.

Picard's iteration (Shih et al. 2023, ParaDiGMS, arXiv:2305.16317) in a window of w states:
  x_i <- G_i = x_first + sum over first <= j < i of (t_(j+1) - t_j) v(x_j, t_j)   (1)
with all v in one batch. The window slides past every state that moved by at most `tolerance` (root
mean square), and one further. `memory` m > 0 mixes iterates as Anderson does, in the triangular
form (Tang et al. 2024, ParaTAA, arXiv:2402.09970), where a state never looks at later ones:
  x_i <- G_i - sum_k c_k (dx_i^k + dR_i^k),   R = G - x,
  c = argmin over the states up to i of |R - sum_k c_k dR^k|^2   (2)
with d the changes between the last m + 1 rounds. DreamPropeller (Zhou et al. 2024,
arXiv:2311.17082) is (1) for the loop of an optimiser, whose steps are its updates: gradients at w
future parameters at once, then the updates again in order.

When it pays: where a device answers w rows nearly as fast as one. It buys latency with work: see
docs/samplers.md for measured rounds and evaluations. Below some 25 steps next to nothing is won,
and where one row keeps the device busy (a CPU, a large picture) it is slower; a solver of 5 to 10
steps is the better way there.
Differs from the authors' codes: flow coordinates, so that one loop serves every prediction; the
bound on the movement is a plain number and not scaled by the noise level.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skipstep.samplers.distill.flow import Condition, Velocity

__all__ = ["Solved", "parallel_walk", "propel"]

RIDGE = 1e-4
State = TypeVar("State")


@dataclass(frozen=True)
class Solved:
    """Hold the end, the batches that had to be waited for, and the evaluations of one state."""

    x: Tensor
    rounds: int
    evaluations: int


@dataclass(frozen=True)
class Round:
    """Hold the states of a round before it, their residuals, and which of them it looked at."""

    x: Float[Tensor, "n b d"]
    rest: Float[Tensor, "n b d"]
    seen: Bool[Tensor, " n"]


@torch.no_grad()
def parallel_walk(
    flow: Velocity,
    x: Float[Tensor, " b *size"],
    nodes: Sequence[float],
    condition: Condition,
    *,
    window: int = 16,
    tolerance: float = 1e-3,
    memory: int = 0,
) -> Solved:
    """Walk by Euler's steps from nodes[0] to nodes[-1], `window` states at a time.

    With tolerance 0 the end is that of the walk one after another.

    Raises ValueError for a window below 1 or a negative tolerance or memory.
    """
    if window < 1 or tolerance < 0 or memory < 0:
        raise ValueError(
            f"window={window}, tolerance={tolerance:g}, memory={memory}: window must be 1 or more, "
            "the others not negative"
        )
    count, rows = len(nodes) - 1, len(x)
    times = torch.tensor(list(nodes), dtype=x.dtype, device=x.device)
    states = x.flatten(1).expand(count + 1, rows, -1).clone()
    kept: list[Round] = []
    first = rounds = evaluations = 0
    while first < count:
        last = min(first + window, count)
        size = last - first
        many = {
            name: value.repeat(size, *[1] * (value.ndim - 1)) for name, value in condition.items()
        }
        asked = states[first:last].reshape(size * rows, *x.shape[1:])
        v = flow(asked, times[first:last].repeat_interleave(rows), many)
        rounds, evaluations = rounds + 1, evaluations + size
        h = (times[first + 1 : last + 1] - times[first:last])[:, None, None]
        inside = slice(first + 1, last + 1)
        mapped = states[first] + (h * v.reshape(size, rows, -1)).cumsum(0)  # Eq. (1)
        rest = mapped - states[inside]
        moved = rest.square().mean(2).sqrt().amax(1)
        settled = min(1 + int((moved <= tolerance).long().cumprod(0).sum()), size)
        if memory:
            mixed = accelerated(kept, states, mapped, inside)
            kept = [noted(states, rest, inside), *kept][: memory + 1]
            mapped[settled:] = mixed[settled:]
        states[inside] = mapped
        # A state that is new in the window begins where the window's last one is.
        states[last + 1 :] = states[last]
        first += settled
    return Solved(states[-1].reshape(x.shape), rounds, evaluations)


def noted(states: Tensor, rest: Tensor, inside: slice) -> Round:
    """Return what a round must remember."""
    whole, seen = torch.zeros_like(states), torch.zeros(len(states), dtype=torch.bool)
    whole[inside], seen[inside] = rest, True
    return Round(states.clone(), whole, seen.to(states.device))


def accelerated(kept: list[Round], states: Tensor, mapped: Tensor, inside: slice) -> Tensor:
    """Return Eq. (2), each sample with weights of its own."""
    rest = mapped - states[inside]
    newest = [noted(states, rest, inside), *kept]
    if len(newest) < 2:
        return mapped
    dx, dr = [], []
    for now, before in zip(newest, newest[1:], strict=False):
        both = (now.seen & before.seen)[inside][:, None, None]
        dx.append((now.x - before.x)[inside] * both)
        dr.append((now.rest - before.rest)[inside] * both)
    changes, slopes = torch.stack(dx), torch.stack(dr)  # [m, w, b, d]
    gram = torch.einsum("kwbd,lwbd->wbkl", slopes, slopes).cumsum(0)
    side = torch.einsum("kwbd,wbd->wbk", slopes, rest).cumsum(0)
    size = gram.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    eye = torch.eye(len(dx), dtype=gram.dtype, device=gram.device)
    c = torch.linalg.solve(gram + (RIDGE * size + 1e-30) * eye, side)  # [w, b, m]
    return mapped - torch.einsum("wbk,kwbd->wbd", c, changes + slopes)


@torch.no_grad()
def propel(
    gradients: Callable[[Float[Tensor, " w *size"], Sequence[int]], Float[Tensor, " w *size"]],
    update: Callable[[State, Tensor, Tensor], tuple[State, Tensor]],
    state: State,
    x: Float[Tensor, " *size"],
    iterations: int,
    *,
    window: int = 8,
    tolerance: float = 1e-6,
    adapt: float = 0.9,
) -> Solved:
    """Run an optimiser's loop with `window` gradients at a time.

    Args:
        gradients: of parameters stacked along the first axis, at these iterations (whose number
            may seed what is random in them, so that a second look sees the same).
        update: (state, parameters, gradient) -> both one iteration later; changes nothing in place.
        state: the optimiser's, such as Adam's moments.
        tolerance: mean squared movement at which parameters count as known; it follows the window's
            median, `adapt` of the old value staying (1 keeps it).

    Returns the parameters after `iterations` updates.
    """
    ahead = x.expand(window + 1, *x.shape).clone()
    first = rounds = evaluations = 0
    while first < iterations:
        size = min(window, iterations - first)
        slopes = gradients(ahead[:size], range(first, first + size))
        rounds, evaluations = rounds + 1, evaluations + size
        parameters, carried, found, states = ahead[0], state, [ahead[0]], [state]
        for slope in slopes:
            carried, parameters = update(carried, parameters, slope)
            found.append(parameters)
            states.append(carried)
        mapped = torch.stack(found)
        moved = (mapped[1:] - ahead[1 : size + 1]).square().flatten(1).mean(1)
        settled = min(1 + int((moved <= tolerance).long().cumprod(0).sum()), size)
        if adapt < 1:
            tolerance = adapt * tolerance + (1 - adapt) * float(moved.median())
        state = states[settled]
        ahead = torch.cat([mapped[settled:], mapped[-1:].expand(window, *x.shape)])[: window + 1]
        first += settled
    return Solved(ahead[0], rounds, evaluations)
