"""ToCa: between computed steps refresh the tokens that others attend to, and those that wait long.

"Accelerating Diffusion Transformers with Token-wise Feature Caching", Zou et al. 2024
(arXiv:2410.05317). It saves attention on all skips and most of the feed-forwards; making the maps
its score needs costs part of an attention per computed step. It fails where attention itself
changes fast.

Interval gate x reuse x influential tokens; the score is in `skipstep.caching.spans.influence`.

Differs from the authors' code: see there.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.influence import (
    EntropyWeight,
    InfluenceWeight,
    InfluentialTokens,
    SpreadBonus,
    WaitingWeight,
)
from skipstep.caching.spans.tokens import Share

__all__ = ["ToCa"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ToCa(CachePlugin):
    """Refresh the most influential tokens on every skip."""

    name: ClassVar[str] = "toca"
    summary: ClassVar[str] = "Repeats attention, refreshes the tokens that others attend to most."
    paper: ClassVar[str] = (
        "Accelerating Diffusion Transformers with Token-wise Feature Caching (arXiv:2410.05317)"
    )

    warmup_steps: WarmupSteps = 4
    final_steps: FinalSteps = 0
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 3
    share: Share = 0.1
    influence: InfluenceWeight = 1.0
    entropy: EntropyWeight = 0.0
    waiting: WaitingWeight = 0.25
    spread: SpreadBonus = 0.6

    def parts(self) -> Parts:
        """Return interval gate x reuse x influential tokens."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        span = InfluentialTokens(
            share=self.share,
            influence=self.influence,
            entropy=self.entropy,
            waiting=self.waiting,
            spread=self.spread,
            period=self.interval,
        )
        return Parts(gate=gate, forecaster=Reuse(), span=span)
