"""Skip inside one part of a run: the static gate of Pyramid Attention Broadcast and T-GATE.

Zhao et al. 2024 (arXiv:2408.12588); Liu et al. 2024 (arXiv:2404.02747). It looks at nothing and
treats all samples alike. With i the step of T and s = i / T,
    skip iff start <= s < stop.
In a run whose length is not known every step is computed.

Differs from the authors' code: the window is a share of the run's steps instead of a range of
training timesteps or a step number, so one setting serves any sampler and number of steps.
"""

from typing import Annotated, ClassVar, Literal

import pydantic
from jaxtyping import Shaped
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step

__all__ = ["WindowGate"]

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class WindowGate(Gate[int]):
    """Skip every step between two shares of the run."""

    looks_at: ClassVar[LooksAt] = "step"

    type: Annotated[Literal["window"], Field(description="Tag of this gate.")] = "window"
    start: Annotated[Share, Field(description="Share of the run where skipping begins.")] = 0.2
    stop: Annotated[Share, Field(description="Share of the run where skipping ends.")] = 0.9

    def __post_init__(self) -> None:
        """Refuse a window that ends before it begins."""
        if self.start > self.stop:
            raise ValueError(f"start {self.start} is behind stop {self.stop}")

    def init(self, rows: int) -> int:
        """Return the number of rows: the window depends on the step alone."""
        return rows

    def decide(
        self, state: int, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Return the window's choice, the same for every row."""
        is_inside = step.count > 0 and self.start <= step.index / step.count < self.stop
        return [Choice(not is_inside, "window")] * state

    def observe(self, state: int, seen: Seen) -> None:
        """Learn nothing."""
