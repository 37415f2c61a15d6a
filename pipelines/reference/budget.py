"""A training schedule in wall time: the learning rate reaches its end whatever the speed."""

import math
import time
from dataclasses import dataclass, field

__all__ = ["WallBudget"]


@dataclass
class WallBudget:
    """Count the seconds of one training run; `spent` is what earlier processes used."""

    seconds: float
    spent: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def used(self) -> float:
        """Seconds trained so far, all processes together."""
        return self.spent + time.monotonic() - self.started

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
