"""A training schedule in time: the learning rate reaches its end whatever the speed."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["WallBudget"]


@dataclass
class WallBudget:
    """Count the seconds of one training run; `spent` is what earlier processes used.

    `clock` is wall time, or `time.process_time` where a shared machine must not cut a run short.
    """

    seconds: float
    spent: float = 0.0
    clock: Callable[[], float] = time.monotonic
    started: float = field(init=False)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def used(self) -> float:
        """Seconds trained so far, all processes together."""
        return self.spent + self.clock() - self.started

    @property
    def fraction(self) -> float:
        """Share of the budget that is used, at most 1."""
        return min(self.used / self.seconds, 1.0)

    @property
    def is_over(self) -> bool:
        return self.used >= self.seconds

    def cosine(self, step: int, *, warmup_steps: int, floor: float) -> float:
        """Return the factor on the peak rate: linear warm-up in steps, cosine in time."""
        decayed = floor + (1 - floor) * (1 + math.cos(math.pi * self.fraction)) / 2
        return min(1.0, (step + 1) / warmup_steps) * decayed
