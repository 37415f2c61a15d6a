"""The whole denoiser output as the skipped part: nothing inside the model runs on a skip.

v_hat = forecast of v, or with `delta` of v - x, to which the current input x is added
(EasyCache, arXiv:2507.02860).
"""

from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import Span

__all__ = ["Output"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Output(Span):
    """Cache what the denoiser returns."""

    type: Annotated[Literal["output"], Field(description="Tag of this span.")] = "output"
    delta: Annotated[
        bool, Field(description="Cache output minus input instead of the output itself.")
    ] = False
