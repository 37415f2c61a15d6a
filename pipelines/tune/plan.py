"""Plan cache schedules for a pipeline: one instrumented run a prompt, then any budget in seconds.

Every prompt runs once uncached while the Gram matrices of the cached feature are recorded
(`skipstep.caching.trajectory`). `Trajectories.cache(count, ...)` then plans with
`skipstep.caching.schedule_plan` and runs nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from skipstep.caching.base import Forecaster, Span
from skipstep.caching.forecasters.fitted import HALF_A_LINE, Fitted
from skipstep.caching.gates.interval import IntervalGate
from skipstep.caching.gates.schedule import Schedule, ScheduleGate
from skipstep.caching.product import Cache
from skipstep.caching.schedule_plan import Objective, fitted_weights, plan_schedule
from skipstep.caching.trajectory import TrajectoryCalibration
from skipstep.pipelines.compare.run import bare, prompt_parameter, silent
from skipstep.pipelines.progress import Progress
from skipstep.plugins.errors import Incompatible, PluginError
from skipstep.plugins.fingerprint import bound_call, fingerprint, of_the_call
from skipstep.plugins.lifecycle import why_not
from skipstep.plugins.profile import profile
from skipstep.plugins.verbs import plugins

__all__ = ["Trajectories", "instrument", "plan_cache", "schedule_cache"]

Feature = Literal["residual", "output"]
FEATURES = ("residual", "output")


@dataclass(frozen=True)
class Trajectories:
    """Hold what instrumented runs left behind: enough to plan a schedule for any budget.

    `grams` has the matrices of each recorded feature, "residual" or "output".
    """

    grams: dict[str, Float64[Tensor, "n t t"]]
    steps: int
    fingerprint: dict[str, Any]

    def schedule(
        self,
        count: int,
        forecaster: Forecaster = HALF_A_LINE,
        *,
        feature: Feature = "residual",
        objective: Objective = "squares",
    ) -> Schedule:
        """Plan at most `count` computed steps for a forecaster; of a `fitted` one the schedule
        holds the weights.
        """
        if feature not in self.grams:
            raise PluginError(
                f"these trajectories hold {', '.join(self.grams)}, not {feature!r}: name it when "
                "you instrument"
            )
        compute = plan_schedule(self.grams[feature], count, forecaster, objective=objective)
        return self.of_steps(compute, forecaster, feature)

    def of_steps(
        self, compute: Sequence[int], forecaster: Forecaster, feature: Feature
    ) -> Schedule:
        """Return the schedule that computes these steps."""
        schedule = Schedule(steps=self.steps, compute=tuple(compute), fingerprint=self.fingerprint)
        if not isinstance(forecaster, Fitted):
            return schedule
        return replace(schedule, weights=fitted_weights(self.grams[feature], schedule, forecaster))

    def cache(
        self,
        count: int,
        forecaster: Any = HALF_A_LINE,
        span: Any = "residual",
        *,
        objective: Objective = "squares",
    ) -> Cache:
        """Plan, and return the cache that runs the plan; forecaster and span as in `Cache`."""
        parts = Cache(gate=IntervalGate(), forecaster=forecaster, span=span)
        feature = self.feature_of(parts.span)
        planned = self.schedule(count, parts.forecaster, feature=feature, objective=objective)
        return schedule_cache(planned, parts.forecaster, parts.span)

    def feature_of(self, span: Span) -> Feature:
        """Name the feature to plan a span on: the other one where its own was not recorded."""
        feature = feature_of(span)
        other: Feature = "output" if feature == "residual" else "residual"
        return feature if feature in self.grams else other


def feature_of(span: Span) -> Feature:
    """Name the recorded feature that stands for a span: modules are planned on the residual."""
    return "output" if span.type == "output" else "residual"


def schedule_cache(schedule: Schedule, forecaster: Any, span: Any) -> Cache:
    """Return the cache that computes a schedule's steps and no others."""
    if isinstance(forecaster, Fitted):
        # Each is told what it reads, so that a recipe says nothing twice.
        forecaster = replace(forecaster, schedule=replace(schedule, fingerprint={}))
    return Cache(
        gate=ScheduleGate(schedule=replace(schedule, weights=())),
        forecaster=forecaster,
        span=span,
        warmup_steps=1,
        final_steps=0,
        max_skips=None,
    )


def plan_cache(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    fraction: float = 0.5,
    steps: int = 20,
    forecaster: Any = HALF_A_LINE,
    span: Any = "residual",
    path: str | Path | None = None,
    seed: int = 0,
    **call: Any,
) -> Cache:
    """Run the pipeline on a few prompts and return a cache with a schedule made for it.

    Args:
        fraction: share of the steps to compute, above 0 to 1.
        forecaster: what stands in, as in `Cache`; span: what is skipped, likewise.
        path: where to save the schedule as JSON, for
            enable_plugin("cache", gate={"type": "schedule", "schedule": path}, ...); of forecaster
            "fitted" it holds the weights: forecaster={"type": "fitted", "schedule": path}.
        call: goes to the pipeline: guidance_scale, height, width, ...
    """
    if not 0 < fraction <= 1:
        raise PluginError(f"plan_cache: fraction={fraction} is not allowed: above 0, at most 1")
    parts = Cache(gate=IntervalGate(), forecaster=forecaster, span=span)
    wanted = [feature_of(parts.span)]
    found = instrument(pipe, prompts, steps=steps, seed=seed, features=wanted, **call)
    schedule = found.schedule(
        max(1, round(fraction * found.steps)),
        parts.forecaster,
        feature=found.feature_of(parts.span),
    )
    if path is not None:
        schedule.save(path)
    return schedule_cache(schedule, parts.forecaster, parts.span)


def instrument(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    steps: int = 20,
    seed: int = 0,
    features: Sequence[str] = ("residual",),
    progress: Progress | None = None,
    **call: Any,
) -> Trajectories:
    """Record the uncached runs of `prompts`, prompt i from seed + i.

    Args:
        features: what to record, "residual" or "output" or both; what the pipeline has not is
            left out, unless nothing is left.
        progress: called with the runs done, the runs in all and what runs.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not prompts:
        raise PluginError("instrument: no prompts given: give at least one, better eight")
    if steps < 2:
        raise PluginError(f"instrument: steps={steps} is not allowed: must be 2 or more")
    if not features or not set(features) <= set(FEATURES):
        raise PluginError(f"instrument: features={list(features)}: name {' or '.join(FEATURES)}")
    recorders = {name: TrajectoryCalibration(of_output=name == "output") for name in features}
    reasons = {name: why_not(each, profile(pipe)) for name, each in recorders.items()}
    wanted = [name for name, reason in reasons.items() if reason is None]
    if not wanted:
        raise Incompatible(f"instrument: {next(iter(reasons.values()))}")
    parameter, done = prompt_parameter(pipe), 0
    with silent(pipe):
        for name in wanted:
            with bare(pipe), plugins(pipe, recorders[name]):
                for i, prompt in enumerate(prompts):
                    if progress is not None:
                        progress(done, len(wanted) * len(prompts), f"recording the {name}")
                    pipe(
                        **{parameter: [prompt]},
                        **call,
                        num_inference_steps=steps,
                        generator=torch.Generator("cpu").manual_seed(seed + i),
                        output_type="np",
                    )
                    done += 1
    grams = {name: recorders[name].record.grams() for name in wanted}
    counted = grams[wanted[0]].shape[-1]
    made_for = fingerprint(pipe, steps=counted, **of_the_call(bound_call(pipe, call)))
    return Trajectories(grams, counted, made_for)
