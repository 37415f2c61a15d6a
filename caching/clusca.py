"""ClusCa: between computed steps run one token of every cluster and correct the others by it.

"Compute Only 16 Tokens in One Timestep: Accelerating Diffusion Transformers with Cluster-Driven
Feature Caching", Zheng et al. 2025 (arXiv:2509.10312). It saves attention and nearly all of the
feed-forwards, and what few tokens it computes tell about all; it fails where tokens of one cluster
drift apart, and has little to save on pictures of few tokens.

Interval gate x Taylor x clusters; the equations are in `skipstep.caching.spans.clusters`.

Differs from the authors' code: see there; order 1 by default.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Forecaster, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.clusters import ClusterCount, Clusters, Propagation

__all__ = ["ClusCa"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ClusCa(CachePlugin):
    """Compute the representatives of `clusters` clusters on every skip."""

    name: ClassVar[str] = "clusca"
    summary: ClassVar[str] = "Runs one token of each cluster and corrects the others by it."
    paper: ClassVar[str] = (
        "Compute Only 16 Tokens in One Timestep: Accelerating Diffusion Transformers with "
        "Cluster-Driven Feature Caching (arXiv:2509.10312)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 0
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 3
    clusters: ClusterCount = 16
    propagation: Propagation = 0.25
    order: Annotated[
        int, Field(ge=0, le=4, description="Order of Taylor's forecast; 0 repeats.")
    ] = 1

    def parts(self) -> Parts:
        """Return interval gate x Taylor (or reuse) x clusters."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        forecaster: Forecaster = Taylor(order=self.order) if self.order else Reuse()
        span = Clusters(clusters=self.clusters, propagation=self.propagation)
        return Parts(gate=gate, forecaster=forecaster, span=span)
