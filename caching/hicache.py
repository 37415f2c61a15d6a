"""HiCache: compute every N-th step and forecast the block stack by Hermite polynomials in between.

"HiCache: Training-free Acceleration of Diffusion Models via Hermite Polynomial-based Feature
Caching", Feng et al. 2025 (arXiv:2508.16984). It damps the slope that TaylorSeer overshoots with;
it fails, as every low-order forecast, on features that turn within a skip.

Interval gate x Hermite x residual; the equations are in `skipstep.caching.forecasters.hermite`.
The paper caches one tensor per step, the final hidden state before the head; the residual of the
block stack is that state minus the stack's fresh input, so Residual is the span.

Differs from the authors' code: true anchor spacing; sigma 0.6 (theirs 0.5); order 1 by default,
where the forecast starts from the computed value.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.damped import MaxNoiseGain, with_noise_limit
from skipstep.caching.forecasters.hermite import Hermite
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.residual import Residual

__all__ = ["HiCache"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class HiCache(CachePlugin):
    """Forecast the block stack between every `interval`-th step by Hermite polynomials."""

    name: ClassVar[str] = "hicache"
    summary: ClassVar[str] = "Computes every N-th step, forecasts by Hermite polynomials."
    paper: ClassVar[str] = (
        "HiCache: Training-free Acceleration of Diffusion Models via Hermite Polynomial-based "
        "Feature Caching (arXiv:2508.16984)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 0
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 4
    order: Annotated[
        int, Field(ge=1, le=4, description="O: highest difference used; needs O + 1 values.")
    ] = 1
    sigma: Annotated[
        float,
        Field(
            gt=0,
            le=1,
            allow_inf_nan=False,
            description="Scale; the slope counts 2 sigma^2 times, so 0.7071 is exact on lines.",
        ),
    ] = 0.6
    max_noise_gain: MaxNoiseGain = None

    def parts(self) -> Parts:
        """Return interval gate x Hermite x residual."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        forecaster = Hermite(order=self.order, sigma=self.sigma)
        return Parts(
            gate=gate,
            forecaster=with_noise_limit(forecaster, self.max_noise_gain),
            span=Residual(),
        )
