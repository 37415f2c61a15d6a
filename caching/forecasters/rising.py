"""A line whose slope counts for more from step to step (FasterCache's attention reuse).

Lv et al. 2024, "FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality"
(arXiv:2410.19355). With a_1 > a_2 the last computed steps of T, k = i - a_1,

    F_hat = F_a1 + w_i k (F_a1 - F_a2) / (a_1 - a_2),   w_i = start + (stop - start) i / (T - 1)

Reuse at first, where differences are mostly noise, and a line in the end. Exact on constants; where
nobody knows T, w is `start`.

Differs from the authors' code: the difference is divided by the true distance of its anchors and
grows with the horizon. Theirs is the plain difference of two values two steps apart, one step on:
their weight is half of w.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import Forecaster

__all__ = ["Rising", "Weight"]

Weight = Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Rising(Forecaster):
    """Extrapolate the line through two values with a weight that rises over the run."""

    type: Annotated[Literal["rising"], Field(description="Tag of this forecaster.")] = "rising"
    start: Annotated[Weight, Field(description="w at the first step.")] = 0.0
    stop: Annotated[Weight, Field(description="w at the last step.")] = 1.0
    steps: Annotated[
        int | None, Field(ge=1, description="T: steps of a run; None takes the run's own.")
    ] = None

    @property
    def anchors(self) -> int:
        """Tell that a line needs two values."""
        return 2

    def for_run(self, count: int, shape: tuple[int, ...]) -> Forecaster:
        """Return this forecaster with the run's number of steps."""
        return replace(self, steps=count) if self.steps is None and count else self

    def weight(self, at: float) -> float:
        """Return w.

        >>> [Rising(steps=5, stop=0.8).weight(i) for i in range(5)]
        [0.0, 0.2, 0.4, 0.6, 0.8]
        """
        progress = at / (self.steps - 1) if self.steps and self.steps > 1 else 0.0
        return round(self.start + (self.stop - self.start) * progress, 12)

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return the weights of the anchors, newest first."""
        if len(times) == 1:
            return [1.0]
        slope = self.weight(at) * (at - times[0]) / (times[0] - times[1])
        return [1.0 + slope, -slope, *[0.0] * (len(times) - 2)]
