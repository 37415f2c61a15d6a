"""DeepCache: on most steps run only a UNet's outermost branch, on the deep features of before.

"DeepCache: Accelerating Diffusion Models for Free", Ma, Fang, Wang 2023 (arXiv:2312.00858). It
saves the deep part of a UNet on (N - 1) / N of the steps; it fails with samplers that add noise
at each step, with few steps, and does nothing for transformers.

Interval gate x reuse x deep features; uniform 1:N, or gathered around a `center` of the run.

Differs from the authors' code: the center is a share of the run; the branch is always the
outermost one; see `skipstep.caching.gates.interval`.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.deep_features import DeepFeatures

__all__ = ["DeepCache"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DeepCache(CachePlugin):
    """Refresh a UNet's deep features at every `interval`-th step only."""

    name: ClassVar[str] = "deepcache"
    summary: ClassVar[str] = "Runs a UNet's deep part every N-th step, its outer branch always."
    paper: ClassVar[str] = "DeepCache: Accelerating Diffusion Models for Free (arXiv:2312.00858)"

    warmup_steps: WarmupSteps = 1
    final_steps: FinalSteps = 0
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 3
    center: Annotated[
        float | None,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="c as a share of the run, for the non-uniform rhythm; None is uniform.",
        ),
    ] = None
    power: Annotated[
        float,
        Field(
            ge=1,
            le=4,
            allow_inf_nan=False,
            description="p: how strongly computed steps gather around the center.",
        ),
    ] = 1.4

    def parts(self) -> Parts:
        """Return interval gate x reuse x deep features."""
        gate = IntervalGate(
            interval=self.interval,
            warmup_steps=self.warmup_steps,
            center=self.center,
            power=self.power,
        )
        return Parts(gate=gate, forecaster=Reuse(), span=DeepFeatures())
