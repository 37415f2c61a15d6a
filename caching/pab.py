"""Pyramid Attention Broadcast: repeat attention outputs, the steadier the kind the longer.

"Real-Time Video Generation with Pyramid Attention Broadcast", Zhao et al. 2024 (arXiv:2408.12588).
In the middle of a run attention outputs change little: cross-attention least, temporal attention
less than spatial. It saves attention only, and fails where the first and last steps, which differ
most, are inside the window.

Window gate x reuse x modules with one interval per kind: inside the window spatial, temporal and
cross-attention are computed every `spatial`, `temporal` and `cross` steps.

Differs from the authors' code: the window is a share of the run (theirs: timesteps 100 to 800 of
1000); guidance branches never share an output; blocks that join attention and feed-forward in one
projection are left alone, because the feed-forward layer is not broadcast.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.window import WindowGate
from skipstep.caching.spans.modules import Modules

__all__ = ["PAB"]

Interval = Annotated[int, Field(ge=1, le=100)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class PAB(CachePlugin):
    """Repeat attention outputs inside a window, each kind for its own number of steps."""

    name: ClassVar[str] = "pab"
    summary: ClassVar[str] = "Repeats spatial, temporal and cross-attention at their own rhythms."
    paper: ClassVar[str] = (
        "Real-Time Video Generation with Pyramid Attention Broadcast (arXiv:2408.12588)"
    )

    warmup_steps: WarmupSteps = 3
    final_steps: FinalSteps = 1
    start: Annotated[
        float, Field(ge=0, le=1, allow_inf_nan=False, description="Share where it begins.")
    ] = 0.15
    stop: Annotated[
        float, Field(ge=0, le=1, allow_inf_nan=False, description="Share where it ends.")
    ] = 0.85
    spatial: Annotated[Interval, Field(description="Steps per computed self-attention.")] = 2
    temporal: Annotated[Interval, Field(description="Steps per computed temporal attention.")] = 3
    cross: Annotated[Interval, Field(description="Steps per computed cross-attention.")] = 5

    def parts(self) -> Parts:
        """Return window gate x reuse x attention modules with intervals."""
        span = Modules(
            kinds=("attention", "temporal_attention", "cross_attention"),
            intervals={
                "attention": self.spatial,
                "temporal_attention": self.temporal,
                "cross_attention": self.cross,
            },
        )
        gate = WindowGate(start=self.start, stop=self.stop)
        return Parts(gate=gate, forecaster=Reuse(), span=span)
