"""First Block Cache: while the first block changes little, repeat what the other blocks add.

ParaAttention (Cheng 2024; no paper). It saves all blocks but the first on quiet steps, with one
knob and no calibration; it fails on models whose first block costs much of the whole or does not
show what the later ones do.

First-block gate x reuse x residual: h = out_0 + (h_last - out_0)_a1, for every stream.

Differs from the authors' code: per-sample decisions; see `skipstep.caching.gates.first_block`.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.first_block import FirstBlockGate
from skipstep.caching.spans.residual import Residual

__all__ = ["FBCache"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FBCache(CachePlugin):
    """Repeat the block stack's residual while the first block changes less than `threshold`."""

    name: ClassVar[str] = "fbcache"
    summary: ClassVar[str] = "Skips all blocks but the first while the first one changes little."
    paper: ClassVar[str] = "First Block Cache (ParaAttention, no paper)"

    warmup_steps: WarmupSteps = 3
    final_steps: FinalSteps = 1
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="Largest relative change of the first block that is skipped; 0 skips none.",
        ),
    ] = 0.1

    def parts(self) -> Parts:
        """Return first-block gate x reuse x residual."""
        gate = FirstBlockGate(threshold=self.threshold)
        return Parts(gate=gate, forecaster=Reuse(), span=Residual())
