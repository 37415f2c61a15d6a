"""The outputs of attention and feed-forward modules, block by block, as the skipped part.

On a skip each module's output is forecast before the block multiplies its gate and adds it to the
stream, so the modulation by the current timestep stays exact.
"""

from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import Span

__all__ = ["ModuleKind", "Modules"]

ModuleKind = Literal["attention", "cross_attention", "feed_forward"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Modules(Span):
    """Cache what the modules of the chosen kinds return, in every block."""

    type: Annotated[Literal["modules"], Field(description="Tag of this span.")] = "modules"
    kinds: Annotated[
        tuple[ModuleKind, ...],
        Field(min_length=1, max_length=3, description="Which modules are cached."),
    ] = ("attention", "cross_attention", "feed_forward")
