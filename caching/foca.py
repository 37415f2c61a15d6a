"""FoCa: compute every N-th step, predict the block stack by BDF2 and correct it by Heun in between.

"Forecast then Calibrate: Feature Caching as ODE for Efficient Diffusion Transformers", Zheng et al.
2025 (arXiv:2508.16211). It bends with the features and stays milder than a quadratic; it fails on
noisy features, whose second difference it uses.

Interval gate x FoCa x residual; the equations are in `skipstep.caching.forecasters.foca`.
The paper caches one tensor per step, the final hidden state before the head; the residual of the
block stack is that state minus the stack's fresh input, so Residual is the span.

Differs from the authors' code: slopes are divided by the true distance of their anchors; the
discretisation is our derivation.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.damped import MaxNoiseGain, with_noise_limit
from skipstep.caching.forecasters.foca import FoCaForecaster
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.residual import Residual

__all__ = ["FoCa"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FoCa(CachePlugin):
    """Predict and correct the block stack between every `interval`-th step."""

    name: ClassVar[str] = "foca"
    summary: ClassVar[str] = "Computes every N-th step, predicts by BDF2 and corrects by Heun."
    paper: ClassVar[str] = (
        "Forecast then Calibrate: Feature Caching as ODE for Efficient Diffusion Transformers "
        "(arXiv:2508.16211)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 0
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 4
    max_noise_gain: MaxNoiseGain = None

    def parts(self) -> Parts:
        """Return interval gate x FoCa x residual."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        forecaster = with_noise_limit(FoCaForecaster(), self.max_noise_gain)
        return Parts(gate=gate, forecaster=forecaster, span=Residual())
