"""Compute the first part of a run in full, then every other step."""

from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.base import CachePlugin, Choice, Gate, LooksAt, Parts, Seen, Step
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.spans.output import Output


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LateGate(Gate[int]):
    looks_at: ClassVar[LooksAt] = "step"
    type: Literal["late"] = "late"
    share: float

    def init(self, rows: int) -> int:
        return rows

    def decide(self, state: int, step: Step, signal: Tensor | None) -> list[Choice]:
        start = round(self.share * step.count)
        computes = step.index < start or (step.index - start) % 2 == 1
        return [Choice(computes, "interval")] * state

    def observe(self, state: int, seen: Seen) -> None:
        pass


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LateHalf(CachePlugin):
    name: ClassVar[str] = "latehalf"
    summary: ClassVar[str] = "Computes the first part of a run, then every other step."

    share: Annotated[
        float, Field(ge=0, le=1, description="Part of the run that is computed in full.")
    ] = 0.5

    def parts(self) -> Parts:
        return Parts(gate=LateGate(share=self.share), forecaster=Taylor(), span=Output())
