"""Foresight: every attention and feed-forward decides for itself whether to repeat its output.

"Foresight: Adaptive Layer Reuse for Accelerated and High-Quality Text-to-Video Generation", Adnan,
Kurella, Arunkumar, Nair 2025 (arXiv:2506.00329). The warm-up tells how much each changes from step
to step, and what later changes less is repeated. It wins where layers change at very different
speeds, and fails where all speed up together after a quiet warm-up.

Interval gate x reuse x layers; the equations are in `skipstep.caching.spans.layers`.

Differs from the authors' code: modules instead of whole blocks.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.layers import Layers, Tolerance

__all__ = ["Foresight"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Foresight(CachePlugin):
    """Repeat what changes less than `tolerance` times its change in the warm-up."""

    name: ClassVar[str] = "foresight"
    summary: ClassVar[str] = "Repeats each module that changes less than it did in the warm-up."
    paper: ClassVar[str] = (
        "Foresight: Adaptive Layer Reuse for Accelerated and High-Quality Text-to-Video Generation "
        "(arXiv:2506.00329)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 0
    interval: Annotated[
        int, Field(ge=1, le=100, description="R: one step in R is computed in full.")
    ] = 3
    tolerance: Tolerance = 4.0

    def parts(self) -> Parts:
        """Return interval gate x reuse x layers."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        return Parts(gate=gate, forecaster=Reuse(), span=Layers(tolerance=self.tolerance))
