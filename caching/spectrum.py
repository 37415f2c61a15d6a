"""Spectrum: compute ever more rarely; forecast the block stack by a Chebyshev ridge fit in between.

"Spectrum", CVPR 2026. It fits the whole run so far, so late skips may be long; it fails in short
runs, and holds `window` tensors per stream.

Growing gate x Chebyshev x residual; the equations are in `skipstep.caching.gates.growing` and
`skipstep.caching.forecasters.chebyshev`.
The paper caches one tensor per step, the final hidden state before the head; the residual of the
block stack is that state minus the stack's fresh input, so Residual is the span.

Differs from the authors' code: tau takes the run's own number of steps; window 5 (theirs 10).
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.chebyshev import Chebyshev
from skipstep.caching.forecasters.damped import MaxNoiseGain, with_noise_limit
from skipstep.caching.gates.growing import GrowingGate
from skipstep.caching.spans.residual import Residual

__all__ = ["Spectrum"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Spectrum(CachePlugin):
    """Fit Chebyshev polynomials to the block stack between steps that grow apart."""

    name: ClassVar[str] = "spectrum"
    summary: ClassVar[str] = "Computes ever more rarely, forecasts by a Chebyshev ridge fit."
    paper: ClassVar[str] = (
        "Spectrum: Adaptive Spectral Feature Forecasting for Diffusion Sampling Acceleration "
        "(CVPR 2026)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 1
    growth: Annotated[
        float,
        Field(ge=0, le=100, allow_inf_nan=False, description="alpha: what a skip adds to the gap."),
    ] = 0.75
    gap: Annotated[
        float,
        Field(ge=1, le=100, allow_inf_nan=False, description="Steps from warm-up to the next one."),
    ] = 2.0
    degree: Annotated[int, Field(ge=1, le=8, description="M: highest Chebyshev polynomial.")] = 4
    penalty: Annotated[
        float, Field(ge=0, le=10, allow_inf_nan=False, description="lambda of the ridge fit.")
    ] = 0.1
    window: Annotated[
        int, Field(ge=2, le=32, description="K: last computed values that are fitted and held.")
    ] = 5
    mix: Annotated[
        float,
        Field(ge=0, le=1, allow_inf_nan=False, description="w: 1 is the fit, 0 the line alone."),
    ] = 0.5
    max_noise_gain: MaxNoiseGain = None

    def parts(self) -> Parts:
        """Return growing gate x Chebyshev x residual."""
        gate = GrowingGate(window=self.gap, growth=self.growth, warmup_steps=self.warmup_steps)
        forecaster = Chebyshev(
            degree=self.degree, penalty=self.penalty, window=self.window, mix=self.mix
        )
        return Parts(
            gate=gate,
            forecaster=with_noise_limit(forecaster, self.max_noise_gain),
            span=Residual(),
        )
