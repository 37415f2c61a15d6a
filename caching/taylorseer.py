"""TaylorSeer: compute every N-th step and extrapolate every module's output in between.

"From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers", Liu et al. 2025
(arXiv:2503.06923). It affords longer intervals than FORA on smooth features; it fails on noisy
features, whose differences it amplifies, and it holds order + 1 tensors per module.

Interval gate x Taylor x modules; the equations are in `skipstep.caching.forecasters.taylor`.

Differs from the authors' code: order 1 by default (theirs is 2); true anchor spacing.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.damped import MaxNoiseGain, with_noise_limit
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.modules import Modules

__all__ = ["TaylorSeer"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TaylorSeer(CachePlugin):
    """Forecast attention and feed-forward outputs between every `interval`-th step."""

    name: ClassVar[str] = "taylorseer"
    summary: ClassVar[str] = "Computes every N-th step, forecasts module outputs in between."
    paper: ClassVar[str] = (
        "From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers "
        "(arXiv:2503.06923)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 0
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 4
    order: Annotated[
        int, Field(ge=1, le=4, description="O: highest difference used; needs O + 1 values.")
    ] = 1
    max_noise_gain: MaxNoiseGain = None

    def parts(self) -> Parts:
        """Return interval gate x Taylor x modules."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        forecaster = with_noise_limit(Taylor(order=self.order), self.max_noise_gain)
        return Parts(gate=gate, forecaster=forecaster, span=Modules())
