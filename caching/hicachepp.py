"""HiCache++: compute every N-th step and continue each sample's own modes in between.

HiCache++, 2026. Dynamic mode decomposition continues growth, decay and oscillation that polynomials
miss; it fails on noise, and is a straight line until four evenly spaced steps are computed.

Interval gate x dynamic modes x residual; the equations are in `skipstep.caching.forecasters.dmd`.
The paper caches one tensor per step, the final hidden state before the head; the residual of the
block stack is that state minus the stack's fresh input, so Residual is the span.

Differs from the authors' code: singular vectors from dot products in float64, growth of modes
limited.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.dmd import DynamicModes
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.residual import Residual

__all__ = ["HiCachePP"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class HiCachePP(CachePlugin):
    """Continue the modes of the block stack between every `interval`-th step."""

    name: ClassVar[str] = "hicachepp"
    summary: ClassVar[str] = "Computes every N-th step, continues modes of the features."
    paper: ClassVar[str] = (
        "HiCache++ (2026), by dynamic mode decomposition (Schmid, J. Fluid Mech. 2010)"
    )

    warmup_steps: WarmupSteps = 5
    final_steps: FinalSteps = 0
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 4
    window: Annotated[
        int, Field(ge=4, le=16, description="Last computed values that are held and decomposed.")
    ] = 6
    max_growth: Annotated[
        float,
        Field(
            ge=1,
            allow_inf_nan=False,
            description="Largest growth of a mode from one computed step to the next.",
        ),
    ] = 2.0

    def parts(self) -> Parts:
        """Return interval gate x dynamic modes x residual."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        forecaster = DynamicModes(window=self.window, max_growth=self.max_growth)
        return Parts(gate=gate, forecaster=forecaster, span=Residual())
