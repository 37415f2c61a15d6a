"""DiCache: a shallow probe decides when to skip and how far to move between the last two residuals.

"DiCache: Let Diffusion Model Determine Its Own Cache", Bu et al. 2025. It saves all blocks behind
the probe on quiet steps; it fails where the first blocks do not move as the deep ones do.

DiCache gate x Taylor of order 1, read at the time the gate gives x residual behind the probe.

Differs from the authors' code: per-sample decisions; see `skipstep.caching.gates.dicache`.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, MaxSkips, Parts, WarmupSteps
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.dicache import DiCacheGate
from skipstep.caching.spans.residual import Residual

__all__ = ["DiCache"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DiCache(CachePlugin):
    """Skip the blocks behind the probe while the probe's accumulated change is small."""

    name: ClassVar[str] = "dicache"
    summary: ClassVar[str] = "Lets a shallow probe decide when to skip and where to forecast."
    paper: ClassVar[str] = "DiCache: Let Diffusion Model Determine Its Own Cache (2025)"

    warmup_steps: WarmupSteps = 4
    final_steps: FinalSteps = 1
    max_skips: MaxSkips = 4
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="delta: accumulated change that forces a step; 0 skips none.",
        ),
    ] = 0.4
    front: Annotated[int, Field(ge=1, le=100, description="m: blocks of the probe.")] = 1

    def parts(self) -> Parts:
        """Return DiCache gate x Taylor x residual."""
        gate = DiCacheGate(threshold=self.threshold, front=self.front)
        return Parts(gate=gate, forecaster=Taylor(order=1), span=Residual())
