"""CFG-Cache: on most steps compute only the conditional half of guidance.

Part of "FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality", Lv et al.
2024 (arXiv:2410.19355). It rests on the finding that within one step the conditional and the
unconditional output differ little and that the difference changes slowly. It saves nearly half of
a skipped step; it does nothing without guidance, or where guidance is an input of the model.

Interval gate x reuse x guidance: the unconditional output of a skipped step is the conditional one
plus the difference of the last computed step, its low frequencies enhanced in mid-run and its high
ones at the end.

Differs from the authors' code: the paper's other half, attention outputs extrapolated with a
growing weight, is not in it; see `skipstep.caching.spans.guidance`.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.guidance import Guidance

__all__ = ["CFGCache"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CFGCache(CachePlugin):
    """Rebuild the unconditional output from the conditional one between computed steps."""

    name: ClassVar[str] = "cfgcache"
    summary: ClassVar[str] = "Computes the unconditional half of guidance every N-th step only."
    paper: ClassVar[str] = (
        "FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality "
        "(arXiv:2410.19355)"
    )

    warmup_steps: WarmupSteps = 3
    final_steps: FinalSteps = 1
    interval: Annotated[
        int, Field(ge=1, le=100, description="N: one step in N computes both halves.")
    ] = 5
    low_weight: Annotated[
        float,
        Field(
            ge=0,
            le=2,
            allow_inf_nan=False,
            description="alpha_1: weight of the difference's low frequencies in mid-run.",
        ),
    ] = 1.1
    high_weight: Annotated[
        float,
        Field(
            ge=0,
            le=2,
            allow_inf_nan=False,
            description="alpha_2: weight of its high frequencies in the last part of the run.",
        ),
    ] = 1.1

    def parts(self) -> Parts:
        """Return interval gate x reuse x guidance."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        span = Guidance(low_weight=self.low_weight, high_weight=self.high_weight)
        return Parts(gate=gate, forecaster=Reuse(), span=span)
