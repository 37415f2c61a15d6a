"""Any cache: a gate x a forecaster x a span, each given by name, by options or as an object.

Cache(gate="first_block", forecaster={"type": "taylor", "order": 2}, span=Residual()) is First Block
Cache with TaylorSeer's forecast. The papers' caches are the named rows of this table; the others
are here to be tried. A gate, forecaster or span of your own may be given as an object.

Pairs without meaning are refused: a gate that looks at the first block needs a span that still
runs that block on a skip, which `output` and `guidance` do not; likewise one that checks forecasts
at the last block.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import pydantic
from pydantic import ConfigDict, Field, SerializeAsAny, WrapValidator

from skipstep.caching.base import (
    CachePlugin,
    FinalSteps,
    Forecaster,
    Gate,
    MaxSkips,
    Parts,
    Span,
    VerifyingGate,
    WarmupSteps,
    decides_inside,
)
from skipstep.caching.forecasters.chebyshev import Chebyshev
from skipstep.caching.forecasters.damped import Damped
from skipstep.caching.forecasters.dmd import DynamicModes
from skipstep.caching.forecasters.fitted import Fitted
from skipstep.caching.forecasters.foca import FoCaForecaster
from skipstep.caching.forecasters.frequency import FrequencySplit
from skipstep.caching.forecasters.hermite import Hermite
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.forecasters.rising import Rising
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.adacache import AdaCacheGate
from skipstep.caching.gates.dicache import DiCacheGate
from skipstep.caching.gates.easycache import EasyCacheGate
from skipstep.caching.gates.first_block import FirstBlockGate
from skipstep.caching.gates.growing import GrowingGate
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.gates.magcache import MagCacheGate
from skipstep.caching.gates.schedule import Schedule, ScheduleGate
from skipstep.caching.gates.seacache import SeaCacheGate
from skipstep.caching.gates.speca import SpeCaGate
from skipstep.caching.gates.teacache import TeaCacheGate
from skipstep.caching.gates.window import WindowGate
from skipstep.caching.spans.clusters import Clusters
from skipstep.caching.spans.deep_features import DeepFeatures
from skipstep.caching.spans.guidance import Guidance
from skipstep.caching.spans.influence import InfluentialTokens
from skipstep.caching.spans.layers import Layers
from skipstep.caching.spans.modules import Modules
from skipstep.caching.spans.output import Output, WholeCall, first_block_refusal
from skipstep.caching.spans.planned import ModulePlan, PlannedModules
from skipstep.caching.spans.residual import Residual
from skipstep.caching.spans.tokens import Tokens

__all__ = ["Cache"]


def _read(value: Any, handler: Callable[[Any], Any]) -> Any:
    """Take an object as it is, a string as the `type` of default options, the rest as options."""
    if isinstance(value, Gate | Forecaster | Span):
        return value
    return handler({"type": value} if isinstance(value, str) else value)


AnyGate = Annotated[
    Annotated[
        IntervalGate
        | AdaCacheGate
        | DiCacheGate
        | EasyCacheGate
        | FirstBlockGate
        | GrowingGate
        | MagCacheGate
        | ScheduleGate
        | SeaCacheGate
        | SpeCaGate
        | TeaCacheGate
        | WindowGate,
        Field(discriminator="type"),
    ],
    WrapValidator(_read),
    SerializeAsAny(),
]
AnyForecaster = Annotated[
    Annotated[
        Reuse
        | Taylor
        | Lagrange
        | Hermite
        | FoCaForecaster
        | Chebyshev
        | Rising
        | DynamicModes
        | FrequencySplit
        | Damped
        | Fitted,
        Field(discriminator="type"),
    ],
    WrapValidator(_read),
    SerializeAsAny(),
]
AnySpan = Annotated[
    Annotated[
        Output
        | Residual
        | Modules
        | DeepFeatures
        | Guidance
        | Layers
        | PlannedModules
        | Tokens
        | InfluentialTokens
        | Clusters,
        Field(discriminator="type"),
    ],
    WrapValidator(_read),
    SerializeAsAny(),
]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Cache(CachePlugin):
    """Combine any gate, forecaster and span."""

    name: ClassVar[str] = "cache"
    summary: ClassVar[str] = "Combines any gate, forecaster and span."

    warmup_steps: WarmupSteps = 3
    final_steps: FinalSteps = 1
    max_skips: MaxSkips = 4
    gate: Annotated[AnyGate, Field(description="When to skip.")] = FirstBlockGate()
    forecaster: Annotated[AnyForecaster, Field(description="What stands in.")] = Reuse()
    span: Annotated[AnySpan, Field(description="What is skipped.")] = Residual()

    def __post_init__(self) -> None:
        """Refuse parts that do not fit together, or that are in each other's place."""
        for field, part, kind in (
            ("gate", self.gate, Gate),
            ("forecaster", self.forecaster, Forecaster),
            ("span", self.span, Span),
        ):
            if not isinstance(part, kind):
                raise ValueError(f"{field}={part!r} is not a {kind.__name__}")
        if decides_inside(self.gate) and isinstance(self.span, WholeCall):
            raise ValueError(first_block_refusal(self.gate))
        if isinstance(self.gate, VerifyingGate) and not isinstance(self.span, Residual):
            raise ValueError(
                f"gate {self.gate.type!r} checks forecasts at the last block, which span "
                f"{self.span.type!r} does not run on its own: use Residual(last_blocks=1)"
            )
        if isinstance(self.span, Tokens | InfluentialTokens) and self.forecaster.anchors > 1:
            raise ValueError(
                f"span {self.span.type!r} holds one value per token, each of another step, and "
                f"forecaster {self.forecaster.type!r} wants {self.forecaster.anchors} of one "
                "step: use 'reuse'"
            )

    def parts(self) -> Parts:
        """Return the three parts; a rhythm without a warm-up takes the plugin's."""
        gate: Gate[Any] = self.gate
        if isinstance(gate, IntervalGate | GrowingGate) and gate.warmup_steps is None:
            gate = replace(gate, warmup_steps=self.warmup_steps)
        return Parts(gate=gate, forecaster=self.forecaster, span=self.span)

    def made_for(self) -> dict[str, Any] | None:
        """Return what the gate's schedule, or the span's plan, was made for."""
        planned = self._planned()
        return dict(planned.fingerprint) if planned and planned.fingerprint else None

    def only_steps(self) -> int | None:
        """Return the number of steps of the gate's schedule or the span's plan."""
        planned = self._planned()
        return planned.steps if planned else None

    def refuses_others(self) -> bool:
        """Tell whether the `on_mismatch` of schedule or plan is "error"."""
        parts = self.gate, self.span
        return any(getattr(part, "on_mismatch", None) == "error" for part in parts)

    def _planned(self) -> Schedule | ModulePlan | None:
        if isinstance(self.gate, ScheduleGate):
            return self.gate.schedule
        return self.span.plan if isinstance(self.span, PlannedModules) else None
