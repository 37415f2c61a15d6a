"""DiCache's gate: accumulate the change of a shallow probe, and let the probe place the forecast.

"DiCache: Let Diffusion Model Determine Its Own Cache", Bu et al. 2025. The first `front` blocks run
on every step; on a miss the others go on from there, so the probe is never wasted. It fails where
the shallow blocks do not move as the deep ones do.

With rho_i the residual of the first m blocks at step i, and a_1 > a_2 the last computed steps of a
sample,
    A += mean|rho_i - rho_(i-1)| / mean|rho_(i-1)|
    skip iff A < threshold; a computed step sets A = 0
    gamma = clip(mean|rho_i - rho_a2| / mean|rho_a1 - rho_a2|, 1, 1.5)
    Delta = Delta_a2 + gamma (Delta_a1 - Delta_a2)
The last line is the straight line through both anchors read at a_2 + gamma (a_1 - a_2), so the gate
hands that time to any forecaster; the paper's is a line (Taylor of order 1).

Differs from the authors' code: written from the formulas alone; A is taken on the probe's residual
(theirs: its output); every sample and guidance branch decides for itself.
"""

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step
from skipstep.caching.gates.first_block import compare
from skipstep.caching.history import keep_rows
from skipstep.kernels.relative_l1 import mean_absolute_difference, relative_l1

__all__ = ["DiCacheGate", "DiCacheState"]


@dataclass(slots=True)
class DiCacheState:
    """Hold A, rho_(i-1), rho_a1, rho_a2 and the anchors' steps of every row, newest first."""

    total: list[float]
    steps: list[tuple[int, ...]]
    previous: Tensor | None = None
    newest: Tensor | None = None
    older: Tensor | None = None


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DiCacheGate(Gate[DiCacheState]):
    """Skip a sample while its probe's accumulated change is small."""

    looks_at: ClassVar[LooksAt] = "first_block"

    type: Annotated[Literal["dicache"], Field(description="Tag of this gate.")] = "dicache"
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="delta: accumulated change that forces a step; 0 skips none.",
        ),
    ] = 0.4
    front: Annotated[int, Field(ge=1, le=100, description="m: blocks of the probe.")] = 1
    gamma_limit: Annotated[
        float,
        Field(ge=1, le=10, allow_inf_nan=False, description="Largest gamma; 1 repeats Delta_a1."),
    ] = 1.5

    def init(self, rows: int) -> DiCacheState:
        """Return a state that has seen nothing."""
        return DiCacheState([0.0] * rows, [()] * rows)

    def decide(
        self, state: DiCacheState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Add the probe's change to A and compare; two host synchronisations."""
        if signal is None:
            raise ValueError("the dicache gate was given no signal: pass the probe's residual")
        previous, state.previous = state.previous, signal.detach().clone()
        if previous is None:
            return [Choice(True, "no history")] * len(state.total)
        changes: list[float] = relative_l1(signal, previous).tolist()
        for row, change in enumerate(changes):
            state.total[row] += change
        choices = [compare(total, self.threshold) for total in state.total]
        if state.newest is None or state.older is None or all(c.compute for c in choices):
            return choices
        moved = mean_absolute_difference(signal, state.older)
        gammas: list[float] = (moved / mean_absolute_difference(state.newest, state.older)).tolist()
        return [
            replace(choice, at=self._time(gamma, steps)) if len(steps) == 2 else choice
            for choice, gamma, steps in zip(choices, gammas, state.steps, strict=True)
        ]

    def _time(self, gamma: float, steps: tuple[int, ...]) -> float:
        """Return a_2 + gamma (a_1 - a_2); a gamma that is not finite counts as 1."""
        gamma = min(max(gamma, 1.0), self.gamma_limit) if math.isfinite(gamma) else 1.0
        return steps[1] + gamma * (steps[0] - steps[1])

    def observe(self, state: DiCacheState, seen: Seen) -> None:
        """Make the computed rows' probes their newest anchors and set their A to 0."""
        if seen.signal is None:
            raise ValueError("the dicache gate was shown no signal: pass the probe's residual")
        rows, count = seen.rows, len(state.total)
        if state.newest is not None:
            shifted = state.newest
            if len(rows) < count:
                shifted = shifted.index_select(0, torch.tensor(rows, device=shifted.device))
            state.older = keep_rows(state.older, shifted, rows, count)
        state.newest = keep_rows(state.newest, seen.signal, rows, count)
        for row in rows:
            state.total[row] = 0.0
            state.steps[row] = (seen.step.index, *state.steps[row][:1])
