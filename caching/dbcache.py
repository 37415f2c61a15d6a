"""DBCache: run the first and the last blocks on every step, repeat what those between add.

cache-dit (vipshop 2025; no paper). It generalises First Block Cache: a deeper probe sees more, and
the last blocks repair what was repeated; it saves less per skip by as many blocks.

First-block gate (depth F) x reuse x residual of blocks F .. N - B:
    h = blocks_(N-B..N)(h_F + (h_(N-B) - h_F)_a1)

Differs from the authors' code: per-sample decisions; F and B are counted in the first and the last
list of blocks; a threshold of 1 or more is compared like any other; a mask of steps is the gate
'schedule' of `enable_plugin("cache")`. See `skipstep.caching.gates.first_block`.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, MaxSkips, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.first_block import FirstBlockGate
from skipstep.caching.spans.residual import Residual

__all__ = ["DBCache"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DBCache(CachePlugin):
    """Skip the middle blocks while the first ones change less than `threshold`."""

    name: ClassVar[str] = "dbcache"
    summary: ClassVar[str] = "Runs the first and last blocks, skips the middle on quiet steps."
    paper: ClassVar[str] = "DBCache (cache-dit, no paper)"

    warmup_steps: WarmupSteps = 4
    final_steps: FinalSteps = 1
    max_skips: MaxSkips = 4
    threshold: Annotated[
        float,
        Field(
            ge=0,
            le=10,
            allow_inf_nan=False,
            description="R: largest relative change of the front that is skipped; 0 skips none.",
        ),
    ] = 0.08
    front: Annotated[
        int, Field(ge=1, le=100, description="F: first blocks, always run and looked at.")
    ] = 1
    back: Annotated[int, Field(ge=0, le=100, description="B: last blocks, always run.")] = 1
    max_cached: Annotated[
        int | None, Field(ge=1, description="Most steps skipped in a run; None means no limit.")
    ] = None
    max_accumulated: Annotated[
        float | None,
        Field(
            gt=0,
            allow_inf_nan=False,
            description="Most that the changes of skips in a row add up to; None means no limit.",
        ),
    ] = None
    order: Annotated[
        int, Field(ge=0, le=4, description="Order of Taylor's forecast; 0 repeats (no TaylorSeer).")
    ] = 0

    def parts(self) -> Parts:
        """Return first-block gate of depth F x reuse (or Taylor) x residual without the last B."""
        gate = FirstBlockGate(
            threshold=self.threshold,
            front=self.front,
            max_cached=self.max_cached,
            max_accumulated=self.max_accumulated,
        )
        forecaster = Taylor(order=self.order) if self.order else Reuse()
        return Parts(gate=gate, forecaster=forecaster, span=Residual(last_blocks=self.back))
