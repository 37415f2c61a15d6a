"""AdaCache: let each computed step choose, by how fast the blocks change, how many to skip.

"Adaptive Caching for Faster Video Generation with Diffusion Transformers", Kahatapitiya et al. 2024
(arXiv:2411.02397). Skipped steps cost nothing, not even a look; it fails where the change speeds up
right after a step that looked quiet.

AdaCache gate x reuse x residual.

Differs from the authors' code: per-sample intervals; the codebook's limits are half of theirs,
which left 29 % of the work and 36 dB on the reference model (`benchmarks.knobs`); see
`skipstep.caching.gates.adacache`.
"""

from typing import ClassVar

import pydantic
from pydantic import ConfigDict

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.adacache import AdaCacheGate, Codebook
from skipstep.caching.spans.residual import Residual

__all__ = ["AdaCache"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class AdaCache(CachePlugin):
    """Skip as many steps as the codebook gives for the measured rate of change."""

    name: ClassVar[str] = "adacache"
    summary: ClassVar[str] = "Chooses the next computed step from the blocks' rate of change."
    paper: ClassVar[str] = (
        "Adaptive Caching for Faster Video Generation with Diffusion Transformers "
        "(arXiv:2411.02397)"
    )

    warmup_steps: WarmupSteps = 3
    final_steps: FinalSteps = 1
    codebook: Codebook = ((0.04, 6), (0.08, 5), (0.12, 4), (0.16, 3), (0.20, 2))

    def parts(self) -> Parts:
        """Return AdaCache gate x reuse x residual."""
        return Parts(gate=AdaCacheGate(codebook=self.codebook), forecaster=Reuse(), span=Residual())
