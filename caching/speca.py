"""SpeCa: forecast the blocks, run the last one to check, and compute again once it disagrees.

"SpeCa: Accelerating Diffusion Transformers with Speculative Feature Caching", Liu et al., ACM
Multimedia 2025. The forecast itself is checked, not a sign of it; a skipped step costs one block,
and an error is noticed one step late.

SpeCa gate x Taylor x residual of all blocks but the last.

Differs from the authors' code: order 1 by default (theirs is 2); see `skipstep.caching.gates.speca`
for the check.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, MaxSkips, Parts, WarmupSteps
from skipstep.caching.forecasters.damped import MaxNoiseGain, with_noise_limit
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.speca import Decay, Floor, SpeCaGate, Tolerance
from skipstep.caching.spans.residual import Residual

__all__ = ["SpeCa"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SpeCa(CachePlugin):
    """Forecast until the check of the last block fails."""

    name: ClassVar[str] = "speca"
    summary: ClassVar[str] = "Forecasts the blocks and runs the last one to check the forecast."
    paper: ClassVar[str] = (
        "SpeCa: Accelerating Diffusion Transformers with Speculative Feature Caching "
        "(ACM Multimedia 2025)"
    )

    warmup_steps: WarmupSteps = 4
    final_steps: FinalSteps = 0
    max_skips: MaxSkips = 8
    threshold: Tolerance = 0.1
    decay: Decay = 0.3
    floor: Floor = 0.01
    order: Annotated[
        int, Field(ge=1, le=4, description="O: highest difference used; needs O + 1 values.")
    ] = 1
    max_noise_gain: MaxNoiseGain = None

    def parts(self) -> Parts:
        """Return SpeCa gate x Taylor x residual without the last block."""
        return Parts(
            gate=SpeCaGate(threshold=self.threshold, decay=self.decay, floor=self.floor),
            forecaster=with_noise_limit(Taylor(order=self.order), self.max_noise_gain),
            span=Residual(last_blocks=1),
        )
