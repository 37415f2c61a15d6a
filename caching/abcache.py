"""AB-Cache: compute every N-th step and extrapolate the denoiser's output in between.

"AB-Cache: Training-Free Acceleration of Diffusion Models via Adams-Bashforth Cached Feature Reuse",
Yu et al. 2025 (arXiv:2504.10540). A skip costs nothing and the error falls as the k-th power of
the step; it fails at high orders over long skips, where the noise of the anchors is amplified.

Interval gate x Lagrange x output; the equations are in `skipstep.caching.forecasters.lagrange`.

Differs from the authors' code: weights for the true, uneven anchor times; forecasts never become
anchors, so errors do not feed on themselves.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.damped import MaxNoiseGain, with_noise_limit
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.output import Output

__all__ = ["ABCache"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ABCache(CachePlugin):
    """Forecast the denoiser's output between every `interval`-th step by a polynomial."""

    name: ClassVar[str] = "abcache"
    summary: ClassVar[str] = "Computes every N-th step, extrapolates the output in between."
    paper: ClassVar[str] = (
        "AB-Cache: Training-Free Acceleration of Diffusion Models via Adams-Bashforth Cached "
        "Feature Reuse (arXiv:2504.10540)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 0
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 3
    order: Annotated[
        int, Field(ge=1, le=4, description="k: values the polynomial goes through; 1 is reuse.")
    ] = 2
    max_noise_gain: MaxNoiseGain = None

    def parts(self) -> Parts:
        """Return interval gate x Lagrange x output."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        forecaster = with_noise_limit(Lagrange(order=self.order), self.max_noise_gain)
        return Parts(gate=gate, forecaster=forecaster, span=Output())
