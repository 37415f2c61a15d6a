"""T-GATE: freeze the cross-attention outputs once they have converged.

"Cross-Attention Makes Inference Cumbersome in Text-to-Image Diffusion Models", Liu et al. 2024
(arXiv:2404.02747). Text plans the picture in the first part of a run and does little afterwards; it
saves cross-attention only, and fails when the gate comes before the plan is made.

Window gate from `gate_step` to the end x reuse x cross-attention modules.

Differs from the authors' code: each guidance branch keeps its own output (theirs: the mean of both)
and guidance goes on, because dropping it is the guidance kind's business; self-attention is not
repeated before the gate (plugin 'pab' does that).
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.window import WindowGate
from skipstep.caching.spans.modules import Modules

__all__ = ["TGate"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class TGate(CachePlugin):
    """Compute cross-attention up to `gate_step` and repeat its last output from there."""

    name: ClassVar[str] = "tgate"
    summary: ClassVar[str] = "Freezes cross-attention outputs after a share of the run."
    paper: ClassVar[str] = (
        "Cross-Attention Makes Inference Cumbersome in Text-to-Image Diffusion Models "
        "(arXiv:2404.02747)"
    )

    warmup_steps: WarmupSteps = 3
    final_steps: FinalSteps = 0
    gate_step: Annotated[
        float,
        Field(ge=0, le=1, allow_inf_nan=False, description="m as a share of the run's steps."),
    ] = 0.4

    def parts(self) -> Parts:
        """Return window gate x reuse x cross-attention modules."""
        gate = WindowGate(start=self.gate_step, stop=1.0)
        return Parts(gate=gate, forecaster=Reuse(), span=Modules(kinds=("cross_attention",)))
