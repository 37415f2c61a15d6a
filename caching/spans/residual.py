"""The residual of the block stack behind the first block as the skipped part.

On a skip the first block runs and h = h_1 + forecast of (h_last - h_1), for every stream.
"""

from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import Span

__all__ = ["Residual"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Residual(Span):
    """Cache what the blocks behind the first one add."""

    type: Annotated[Literal["residual"], Field(description="Tag of this span.")] = "residual"
