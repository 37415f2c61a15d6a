"""FreqCa: compute every N-th step; repeat low frequencies, extrapolate high ones in between.

"FreqCa: Accelerating Diffusion Models via Frequency-Aware Caching", Liu et al. 2025. It needs the
grid of the picture's tokens and computes in full, saying so, where that cannot be known; it fails
where low frequencies move.

Interval gate x frequency split x residual; the equations are in
`skipstep.caching.forecasters.frequency`.
The paper caches one tensor per step, the final hidden state before the head; the residual of the
block stack is that state minus the stack's fresh input, so Residual is the span.

Differs from the authors' code: cutoff and transform are ours; order 1 by default (theirs is 2).
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.frequency import FrequencySplit
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.residual import Residual

__all__ = ["FreqCa"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FreqCa(CachePlugin):
    """Repeat low and extrapolate high frequencies between every `interval`-th step."""

    name: ClassVar[str] = "freqca"
    summary: ClassVar[str] = "Computes every N-th step, extrapolates high frequencies only."
    paper: ClassVar[str] = (
        "FreqCa: Accelerating Diffusion Models via Frequency-Aware Caching (2025)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 0
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 4
    cutoff: Annotated[
        float,
        Field(ge=0, le=1, allow_inf_nan=False, description="Share of each axis that is low."),
    ] = 0.1
    order: Annotated[
        int, Field(ge=1, le=4, description="O: highest difference used for high frequencies.")
    ] = 1
    sigma: Annotated[
        float, Field(gt=0, le=1, allow_inf_nan=False, description="Scale of the Hermite forecast.")
    ] = 0.6
    grid: Annotated[
        tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None,
        Field(description="Rows and columns of the tokens, where the input does not tell."),
    ] = None

    def parts(self) -> Parts:
        """Return interval gate x frequency split x residual."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        forecaster = FrequencySplit(
            cutoff=self.cutoff, order=self.order, sigma=self.sigma, grid=self.grid
        )
        return Parts(gate=gate, forecaster=forecaster, span=Residual())
