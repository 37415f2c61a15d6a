"""SeaCache: extrapolate what the blocks add while the signal in the input changes little.

"SeaCache: Spectral-Evolution-Aware Cache for Accelerating Diffusion Models", CVPR 2026. A skip runs
no block, no calibration is needed; it fails where the noise level is unknown (computed in full, and
said).

SeaCache gate x Taylor of order 1 x residual: Delta = Delta_a1 + (Delta_a1 - Delta_a2) k/(a1 - a2).

Differs from the authors' code: per-sample decisions; see `skipstep.caching.gates.seacache`.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, MaxSkips, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.seacache import SeaCacheGate
from skipstep.caching.spans.residual import Residual

__all__ = ["SeaCache"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SeaCache(CachePlugin):
    """Skip all blocks while the accumulated, filtered change of the latents is small."""

    name: ClassVar[str] = "seacache"
    summary: ClassVar[str] = "Skips all blocks while the signal part of the input changes little."
    paper: ClassVar[str] = (
        "SeaCache: Spectral-Evolution-Aware Cache for Accelerating Diffusion Models (CVPR 2026)"
    )

    warmup_steps: WarmupSteps = 3
    final_steps: FinalSteps = 1
    max_skips: MaxSkips = 2
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="delta: accumulated change that forces a step; 0 skips none.",
        ),
    ] = 0.15
    order: Annotated[
        int, Field(ge=0, le=2, description="Order of the residual's forecast; 0 repeats it.")
    ] = 1
    grid: Annotated[
        tuple[Annotated[int, Field(ge=1)], ...] | None,
        Field(
            min_length=1,
            max_length=3,
            description="Axes of latents packed into tokens; None takes a square or one line.",
        ),
    ] = None

    def parts(self) -> Parts:
        """Return SeaCache gate x Taylor (or reuse) x residual."""
        gate = SeaCacheGate(threshold=self.threshold, grid=self.grid)
        forecaster = Taylor(order=self.order) if self.order else Reuse()
        return Parts(gate=gate, forecaster=forecaster, span=Residual())
