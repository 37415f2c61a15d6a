"""DuCa: between computed steps refresh some tokens, then none, in turn.

"Accelerating Diffusion Transformers with Dual Feature Caching", Zou et al. 2024
(arXiv:2412.18911). It saves attention on all skips and most of the feed-forward on half of them;
it holds three tensors per block, and fails where attention itself changes fast.

Interval gate x reuse x tokens: a cycle of one full step, then cautious steps (the feed-forward of
the most changed tokens is computed) and aggressive ones (everything is repeated) in turn.

Differs from the authors' code: the score of a token; see `skipstep.caching.spans.tokens`.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.tokens import Tokens

__all__ = ["DuCa"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DuCa(CachePlugin):
    """Refresh the most changed tokens on every other skip."""

    name: ClassVar[str] = "duca"
    summary: ClassVar[str] = "Repeats attention, refreshes the most changed tokens, then none."
    paper: ClassVar[str] = (
        "Accelerating Diffusion Transformers with Dual Feature Caching (arXiv:2412.18911)"
    )

    warmup_steps: WarmupSteps = 2
    final_steps: FinalSteps = 1
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 3
    share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="R: share of the tokens that a cautious step computes.",
        ),
    ] = 0.2
    every: Annotated[
        int, Field(ge=1, description="One skip in this many is cautious; 1 means all are.")
    ] = 2

    def parts(self) -> Parts:
        """Return interval gate x reuse x tokens."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        span = Tokens(share=self.share, every=self.every)
        return Parts(gate=gate, forecaster=Reuse(), span=span)
