"""The deep features of a UNet as the skipped part (DeepCache, arXiv:2312.00858).

On a skip only the shallowest branch runs; what its up-block receives from below is forecast.
"""

from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import Span

__all__ = ["DeepFeatures"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class DeepFeatures(Span):
    """Cache what the outermost up-block of a UNet receives from below."""

    type: Annotated[Literal["deep_features"], Field(description="Tag of this span.")] = (
        "deep_features"
    )
