"""Compute ever more rarely: the static gate of Spectrum.

"Spectrum", CVPR 2026. Late steps of a run are forecast from more computed ones, so skips may grow;
it looks at nothing and needs no host synchronisation; it fails where the end of a run changes fast.
With a warm-up of w steps and a window W that starts at `window` and grows by alpha per computed
step, a step after the warm-up is computed iff
    (skips in a row before it + 1) mod floor(W) = 0,   and then W = W + alpha
so the computed steps are w - 1 + floor(W_0), then floor(W_0 + alpha) later, and so on. Of 50 steps
with w = 5 and window 2, alpha = 0.75 computes 14 and alpha = 3 computes 10. alpha = 0 is `interval`
with N = window.

Differs from the authors' code: nothing.
"""

import math
from typing import Annotated, ClassVar, Literal

import pydantic
from jaxtyping import Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step

__all__ = ["GrowingGate", "growing_steps"]


def growing_steps(count: int, *, window: float, growth: float, warmup_steps: int) -> list[int]:
    """Return the steps of a run of `count` that the growing rhythm computes, in order.

    >>> growing_steps(50, window=2, growth=3, warmup_steps=5)
    [0, 1, 2, 3, 4, 6, 11, 19, 30, 44]
    """
    steps = list(range(min(warmup_steps, count)))
    step = warmup_steps - 1 + math.floor(window)
    while step < count:
        steps.append(step)
        window += growth
        step += math.floor(window)
    return steps


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GrowingGate(Gate[int]):
    """Compute steps further and further apart, the same for all samples."""

    looks_at: ClassVar[LooksAt] = "step"

    type: Annotated[Literal["growing"], Field(description="Tag of this gate.")] = "growing"
    window: Annotated[
        float,
        Field(ge=1, le=100, allow_inf_nan=False, description="W: steps to the next computed one."),
    ] = 2.0
    growth: Annotated[
        float,
        Field(ge=0, le=100, allow_inf_nan=False, description="alpha: what each adds to W."),
    ] = 0.75
    warmup_steps: Annotated[
        int | None,
        Field(ge=1, description="w: steps before the rhythm starts; None takes the plugin's."),
    ] = None

    def init(self, rows: int) -> int:
        """Return the number of rows: the rhythm depends on the step alone."""
        return rows

    def decide(
        self, state: int, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Return the rhythm's choice, the same for every row."""
        return [Choice(self.computes(step), "interval")] * state

    def observe(self, state: int, seen: Seen) -> None:
        """Learn nothing."""

    def computes(self, step: Step) -> bool:
        """Tell whether the rhythm computes `step`, without running anything."""
        steps = growing_steps(
            step.index + 1,
            window=self.window,
            growth=self.growth,
            warmup_steps=self.warmup_steps or 1,
        )
        return steps[-1] == step.index
