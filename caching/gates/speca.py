"""SpeCa's gate: forecasts go on until a check of one block says that they have drifted.

"SpeCa: Accelerating Diffusion Transformers with Speculative Feature Caching", Liu et al., ACM
Multimedia 2025. Every skipped step runs the model's last block on the forecast stream and compares
what it adds with the forecast of that; it costs one block a step, and fails where the last block is
easier to forecast than the others.

With x what the last block added and x_hat its forecast, at step i of T and d skips since the last
computed step,
    e = mean|x_hat - x| / mean|x|,   tau_i = max(floor, threshold * decay^(i / (T - 1))),
    the next step is computed iff e > tau_i or d = max_skips.

Differs from the authors' code: e is a quotient of means instead of a mean of quotients, which
explodes on entries near zero and is why their threshold is 7; every sample has its own e and d; the
first skip already counts (theirs: the second).
"""

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import pydantic
from jaxtyping import Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Choice, LooksAt, Seen, Step, VerifyingGate

__all__ = ["Decay", "Floor", "SpeCaGate", "SpeCaState", "Tolerance"]

Tolerance = Annotated[
    float, Field(ge=0, allow_inf_nan=False, description="tau at the first step, a relative L1.")
]
Decay = Annotated[float, Field(gt=0, le=1, description="tau's factor over the whole run.")]
Floor = Annotated[float, Field(ge=0, allow_inf_nan=False, description="Smallest tau.")]


@dataclass(slots=True)
class SpeCaState:
    """Hold every row's last e; None before the first check."""

    error: list[float | None]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SpeCaGate(VerifyingGate[SpeCaState]):
    """Skip until the last block and its forecast disagree by more than tau."""

    looks_at: ClassVar[LooksAt] = "step"
    learns: ClassVar[bool] = True

    type: Annotated[Literal["speca"], Field(description="Tag of this gate.")] = "speca"
    threshold: Tolerance = 0.1
    decay: Decay = 0.3
    floor: Floor = 0.01

    def init(self, rows: int) -> SpeCaState:
        """Return a state in which nothing was checked."""
        return SpeCaState([None] * rows)

    def tolerance(self, step: Step) -> float:
        """Return tau_i; where nobody knows how long the run is, that of its first step.

        >>> gate = SpeCaGate(threshold=0.5, decay=0.04, floor=0.05)
        >>> [round(gate.tolerance(Step(i, 5)), 3) for i in range(5)]
        [0.5, 0.224, 0.1, 0.05, 0.05]
        """
        progress = step.index / (step.count - 1) if step.count > 1 else 0.0
        return max(self.floor, self.threshold * math.pow(self.decay, progress))

    def decide(
        self, state: SpeCaState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Compare every row's last e with tau; what is not finite computes."""
        tau = self.tolerance(step)
        choices = []
        for error in state.error:
            drifted = error is not None and not error <= tau
            choices.append(Choice(drifted, "changed" if drifted else "small change", error, tau))
        return choices

    def observe(self, state: SpeCaState, seen: Seen) -> None:
        """Begin anew where a row was computed."""
        for row in seen.rows:
            state.error[row] = None

    def verify(self, state: SpeCaState, rows: list[int], errors: list[float]) -> None:
        """Take note of e."""
        for row, error in zip(rows, errors, strict=True):
            state.error[row] = error
