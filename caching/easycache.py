"""EasyCache: repeat what the denoiser adds to its input while its predicted change is small.

"Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching", Zhou et
al. 2025 (arXiv:2507.02860). A skip costs nothing and any model is served, because only the
denoiser's input and output are looked at; it fails on steep thresholds late in a run, where the
output turns faster than the rate of the last computed steps predicts.

EasyCache gate x reuse x output: v = x_i + (v_a1 - x_a1) on a skip.

Differs from the authors' code: `delta=False` repeats v_a1 itself; per-sample decisions; see
`skipstep.caching.gates.easycache`.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.easycache import EasyCacheGate
from skipstep.caching.spans.output import Output

__all__ = ["EasyCache"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class EasyCache(CachePlugin):
    """Skip whole denoiser calls while the accumulated predicted change is below `threshold`."""

    name: ClassVar[str] = "easycache"
    summary: ClassVar[str] = "Skips whole denoiser calls while input and output change little."
    paper: ClassVar[str] = (
        "Less is Enough: Training-Free Video Diffusion Acceleration via Runtime-Adaptive Caching "
        "(arXiv:2507.02860)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 1
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="tau: accumulated relative output change that forces a step; 0 skips none.",
        ),
    ] = 0.05
    delta: Annotated[
        bool, Field(description="Repeat output minus input (the paper) or the output itself.")
    ] = True

    def parts(self) -> Parts:
        """Return EasyCache gate x reuse x output."""
        gate = EasyCacheGate(threshold=self.threshold)
        return Parts(gate=gate, forecaster=Reuse(), span=Output(delta=self.delta))
