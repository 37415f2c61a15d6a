"""ECAD: compute the modules that an evolved plan names, step by step, and repeat the others.

"Evolutionary Caching to Accelerate Your Off-the-Shelf Diffusion Model", Aggarwal, Shrivastava,
Gwilliam 2025 (arXiv:2506.15682). A genetic algorithm finds for one model, scheduler and number of
steps which modules may be skipped when; running the plan looks at nothing. It fails on what it was
not made for, and says so.

Interval gate that computes the first step x reuse x planned modules; `skipstep.evolve_plan` finds
plans, and the form of their files is in `skipstep.caching.spans.planned`.

Differs from the authors' code: see there, and `skipstep.pipelines.tune.ecad` for the search.
"""

from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field

from skipstep.caching.base import CachePlugin, FinalSteps, Parts, WarmupSteps
from skipstep.caching.forecasters.reuse import Reuse
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.spans.planned import ModulePlan, PlannedModules, read_plan

__all__ = ["ECAD"]

LONGEST_RUN = 10_000
_NO_PLAN = (
    "ecad has no plan: make one for this pipeline with skipstep.evolve_plan(pipe, prompts, "
    "path='plan.json') and give plan='plan.json'"
)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ECAD(CachePlugin):
    """Run an evolved plan of modules."""

    name: ClassVar[str] = "ecad"
    summary: ClassVar[str] = "Computes the modules of an evolved plan, step by step."
    paper: ClassVar[str] = (
        "Evolutionary Caching to Accelerate Your Off-the-Shelf Diffusion Model (arXiv:2506.15682)"
    )

    warmup_steps: WarmupSteps = 1
    final_steps: FinalSteps = 0
    plan: Annotated[
        ModulePlan | None,
        BeforeValidator(read_plan, json_schema_input_type=str | ModulePlan | None),
        Field(description="Path of a plan's file, or the plan itself."),
    ] = None
    on_mismatch: Annotated[
        Literal["error", "warn"],
        Field(description="Another model, scheduler or number of steps: refuse it, or say so."),
    ] = "error"

    def parts(self) -> Parts:
        """Return interval gate x reuse x planned modules; raises ValueError without a plan."""
        if self.plan is None:
            raise ValueError(_NO_PLAN)
        gate = IntervalGate(interval=LONGEST_RUN, warmup_steps=self.warmup_steps)
        mismatch: Any = "error" if self.on_mismatch == "error" else "nearest"
        span = PlannedModules(plan=self.plan, on_mismatch=mismatch)
        return Parts(gate=gate, forecaster=Reuse(), span=span)

    def made_for(self) -> dict[str, Any] | None:
        """Return what the plan was evolved for."""
        return dict(self.plan.fingerprint) if self.plan and self.plan.fingerprint else None

    def only_steps(self) -> int | None:
        """Return the number of steps of the plan."""
        return self.plan.steps if self.plan else None

    def refuses_others(self) -> bool:
        """Tell whether another model or scheduler is refused."""
        return self.on_mismatch == "error"

    def why_not(self, profile: Any) -> str | None:
        """Return how to evolve a plan when there is none."""
        return _NO_PLAN if self.plan is None else None
