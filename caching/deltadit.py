"""Delta-DiT: skip the rear blocks early in the run and the front blocks late.

"Delta-DiT: A Training-Free Acceleration Method Tailored for Diffusion Transformers", Chen et al.
2024 (arXiv:2406.01125). It rests on the finding that front blocks draw the outline and rear blocks
the details: what a stage does not need is what is repeated in it. It saves the skipped blocks'
share of (N - 1) / N of the steps; it fails with few steps and on models of few blocks.

Interval gate x reuse x residual of a block range. With L blocks of which K are kept, boundary b:
    step < b T (outline):  h_L = h_K + Delta,     Delta = h_L - h_K      of the last computed step
    step >= b T (detail):  h_{L-K} = h_0 + Delta, Delta = h_{L-K} - h_0

Differs from the authors' code: the option counts the blocks that are kept instead of those that are
skipped, so that one setting serves models of any depth; the boundary is a share of the run; the
first step of the second stage is computed.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.residual import Residual

__all__ = ["DeltaDiT"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DeltaDiT(CachePlugin):
    """Repeat the rear blocks' residual early in the run and the front blocks' late."""

    name: ClassVar[str] = "deltadit"
    summary: ClassVar[str] = "Repeats what the rear blocks add early on, the front blocks later."
    paper: ClassVar[str] = (
        "Delta-DiT: A Training-Free Acceleration Method Tailored for Diffusion Transformers "
        "(arXiv:2406.01125)"
    )

    warmup_steps: WarmupSteps = 2
    final_steps: FinalSteps = 1
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 2
    kept_blocks: Annotated[
        int, Field(ge=1, description="Blocks that run at every step; all the others are skipped.")
    ] = 2
    boundary: Annotated[
        float,
        Field(
            gt=0,
            lt=1,
            allow_inf_nan=False,
            description="b: share of the run from which the front blocks are skipped.",
        ),
    ] = 0.5

    def parts(self) -> Parts:
        """Return interval gate x reuse x residual of a range that changes sides."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        span = Residual(first_blocks=self.kept_blocks, swap_at=self.boundary)
        return Parts(gate=gate, forecaster=Reuse(), span=span)
