"""FasterCache's dynamic feature reuse: attention outputs repeated with a growing share of trend.

Half of "FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality", Lv et al.
2024 (arXiv:2410.19355). Plain reuse of attention blurs detail, because outputs of neighbouring
steps look alike and still drift; the drift is added, by a weight that rises over the run. It saves
attention only, so its speed ends where the feed-forwards begin.

Interval gate x rising line x self- and temporal attention modules. The other half of the paper, the
unconditional branch of guidance, is `cfgcache`; a denoiser takes one cache at a time, so the two
are not combined here.

Differs from the authors' code: true distances between steps; see
`skipstep.caching.forecasters.rising`.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.rising import Rising, Weight
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.modules import Modules

__all__ = ["FasterCache"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FasterCache(CachePlugin):
    """Forecast self-attention between every `interval`-th step by a line of rising weight."""

    name: ClassVar[str] = "fastercache"
    summary: ClassVar[str] = "Forecasts self-attention by a line whose weight rises over the run."
    paper: ClassVar[str] = (
        "FasterCache: Training-Free Video Diffusion Model Acceleration with High Quality "
        "(arXiv:2410.19355)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 0
    interval: Annotated[
        int, Field(ge=1, le=100, description="One step in this many computes attention.")
    ] = 2
    start: Annotated[Weight, Field(description="w at the first step; 0 repeats.")] = 0.0
    stop: Annotated[Weight, Field(description="w at the last step; 1 is the whole line.")] = 1.0

    def parts(self) -> Parts:
        """Return interval gate x rising line x self- and temporal attention."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        forecaster = Rising(start=self.start, stop=self.stop)
        span = Modules(kinds=("attention", "temporal_attention"))
        return Parts(gate=gate, forecaster=forecaster, span=span)
