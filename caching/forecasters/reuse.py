"""Reuse: the last computed value stands in for the skipped one.

F_hat(t) = F(a_1). Exact on constants; the error grows with the distance to the last computed step.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

import pydantic
from pydantic import ConfigDict, Field

from skipstep.caching.base import Forecaster

__all__ = ["Reuse"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Reuse(Forecaster):
    """Repeat the newest computed value."""

    type: Annotated[Literal["reuse"], Field(description="Tag of this forecaster.")] = "reuse"

    @property
    def anchors(self) -> int:
        """Tell that one computed value is enough."""
        return 1

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return weight 1 for the newest anchor and 0 for the others."""
        return [1.0] + [0.0] * (len(times) - 1)
