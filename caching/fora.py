"""FORA: compute every N-th step and repeat every module's output in between.

"FORA: Fast-Forward Caching in Diffusion Transformer Acceleration", Selvaraju et al. 2024
(arXiv:2407.01425). It saves (N - 1) / N of the modules' work, the same on every sample; it fails
where features change fast between two computed steps, and it holds one tensor per module.

Interval gate x reuse x modules: at a skipped step the outputs of attention and feed-forward of the
last computed step enter each block, before the block multiplies its gate and adds them.

Differs from the authors' code: four warm-up steps (`warmup_steps=1` is the paper's i mod N = 0),
and cross-attention is cached like the rest.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.modules import Modules

__all__ = ["FORA"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FORA(CachePlugin):
    """Repeat attention and feed-forward outputs between every `interval`-th step."""

    name: ClassVar[str] = "fora"
    summary: ClassVar[str] = "Computes every N-th step, repeats module outputs in between."
    paper: ClassVar[str] = (
        "FORA: Fast-Forward Caching in Diffusion Transformer Acceleration (arXiv:2407.01425)"
    )

    warmup_steps: WarmupSteps = 4
    final_steps: FinalSteps = 0
    interval: Annotated[int, Field(ge=1, le=100, description="N: one step in N is computed.")] = 3

    def parts(self) -> Parts:
        """Return interval gate x reuse x modules."""
        gate = IntervalGate(interval=self.interval, warmup_steps=self.warmup_steps)
        return Parts(gate=gate, forecaster=Reuse(), span=Modules())
