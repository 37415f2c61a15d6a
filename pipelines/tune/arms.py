"""The arms a tuning chooses from: planned schedules, adaptive caches, and fewer steps with the
pipeline's own solver or a better one, which may carry a cache with an even rhythm.

An arm is a dict of plain values, so that a study can store it and propose new ones:
    {"method": "planned", "count": 10, "forecaster": "lagrange-2", "span": "residual"}
    {"method": "adaptive", "preset": "easycache", "threshold": 0.05}
    {"method": "fewer", "count": 10}
    {"method": "solver", "count": 10, "solver": "calibrated", "rhythm": "none"}
What a pipeline cannot do is left out: its spans and presets are asked beforehand.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from skipstep.caching.abcache import ABCache
from skipstep.caching.base import CachePlugin, Forecaster
from skipstep.caching.forecasters.fitted import HALF_A_LINE
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.product import AnyForecaster
from skipstep.pipelines.tune.plan import Trajectories
from skipstep.pipelines.tune.solvers import Solvers, usable_solvers
from skipstep.plugins import catalog
from skipstep.plugins.errors import PluginError
from skipstep.plugins.lifecycle import why_not
from skipstep.plugins.profile import profile

__all__ = ["ArmSpace", "Params", "describe"]

Params = dict[str, Any]

SPANS = ("residual", "output", "modules")
FIRST_FORECASTERS = ("fitted", "damped", "reuse", "lagrange-2")
THRESHOLDS = (0.003, 1.0)
FIRST_THRESHOLDS = (0.05, 0.1, 0.2)
FEWEST = 2
SHARES = (1 / 2, 1 / 3, 2 / 3, 1 / 4)
# Caches that need no plan of their own, so that they go with any solver and number of steps.
RHYTHMS: dict[str, ABCache | None] = {
    "none": None,
    "every 2nd": ABCache(interval=2, warmup_steps=3),
    "every 3rd": ABCache(interval=3, warmup_steps=3),
}
LEAST_FOR_RHYTHM = 8
GRID_SHARES = (0.25, 0.33, 0.42, 0.5, 0.67)
GRID_THRESHOLDS = (0.05, 0.2)


def known_forecasters() -> dict[str, Forecaster]:
    """Return every forecaster `cache` takes with its default options, two of other orders, and half
    a line in the place of `damped`, which does nothing by default.
    """
    union = get_args(AnyForecaster)[0]
    found: list[Forecaster] = [each() for each in get_args(union)]
    found += [Lagrange(order=3), Taylor(order=2), HALF_A_LINE]
    return {
        each.type if not hasattr(each, "order") else f"{each.type}-{each.order}": each
        for each in found
    }


def describe(params: Params) -> str:
    """Name an arm in a few words.

    >>> describe({"method": "fewer", "count": 9})
    '9 plain steps'
    """
    if params["method"] == "fewer":
        return f"{params['count']} plain steps"
    if params["method"] == "adaptive":
        return f"{params['preset']}:threshold={params['threshold']:.3g}"
    if params["method"] == "solver":
        rhythm = "" if params["rhythm"] == "none" else f", {params['rhythm']} computed"
        return f"{params['count']} steps of {params['solver']}{rhythm}"
    return f"{params['count']} planned steps, {params['forecaster']}, {params['span']}"


@dataclass(frozen=True)
class ArmSpace:
    """Every arm of one pipeline at one number of steps."""

    found: Trajectories
    spans: tuple[str, ...]
    presets: tuple[str, ...]
    forecasters: dict[str, Forecaster]
    solvers: tuple[str, ...]
    make_solver: Solvers

    @classmethod
    def of(cls, pipe: Any, found: Trajectories, make_solver: Solvers) -> "ArmSpace":
        """Ask the pipeline which spans, presets and solvers it can serve."""
        profiled = profile(pipe)
        spans = [
            span
            for span in SPANS
            if why_not(found.cache(found.steps, "reuse", span), profiled) is None
        ]
        return cls(
            found,
            tuple(spans),
            tuple(thresholded(profiled)),
            known_forecasters(),
            usable_solvers(pipe),
            make_solver,
        )

    def plugins(self, params: Params) -> list[Any]:
        """Return what an arm switches on; nothing for fewer steps."""
        if params["method"] == "fewer":
            return []
        if params["method"] == "solver":
            rhythm = RHYTHMS[params["rhythm"]]
            solver = self.make_solver.plugin(params["solver"], params["count"])
            return [solver] if rhythm is None else [solver, rhythm]
        if params["method"] == "adaptive":
            preset: type[CachePlugin] = catalog.load(params["preset"])
            options: dict[str, Any] = {"threshold": params["threshold"]}
            return [preset(**options)]
        forecaster = self.forecasters[params["forecaster"]]
        return [self.found.cache(params["count"], forecaster, params["span"])]

    def steps(self, params: Params) -> int:
        """Return how many steps the pipeline is called with."""
        is_fewer = params["method"] in ("fewer", "solver")
        return int(params["count"]) if is_fewer else self.found.steps

    def first(self, work: float | None) -> list[Params]:
        """Return arms to begin with: around the share `work` where a speed is asked for."""
        whole = self.found.steps
        # A skipped step is not free, so one step fewer than the share comes first.
        wanted = (
            [share * whole for share in SHARES]
            if work is None
            else [work * whole - 0.5, work * whole, 0.85 * work * whole, 1.15 * work * whole]
        )
        counts = dict.fromkeys(min(whole, max(FEWEST, int(each))) for each in wanted)
        arms: list[Params] = []
        for count in counts:
            for forecaster in FIRST_FORECASTERS:
                arms += [
                    {"method": "planned", "count": count, "forecaster": forecaster, "span": span}
                    for span in self.spans
                ]
            arms.append({"method": "fewer", "count": count})
            arms += [
                {"method": "solver", "count": count, "solver": solver, "rhythm": "none"}
                for solver in self.solvers
            ]
        for preset in self.presets:
            arms += [
                {"method": "adaptive", "preset": preset, "threshold": threshold}
                for threshold in FIRST_THRESHOLDS
            ]
        # One of each sort before the second of any: a short budget sees all of them.
        return list(in_turn(arms))

    def suggest(self, trial: Any) -> Params:
        """Let a study's sampler choose an arm."""
        steps = self.found.steps
        methods = ["planned", "fewer", *(["adaptive"] if self.presets else [])]
        methods += ["solver"] if self.solvers else []
        params: Params = {"method": trial.suggest_categorical("method", methods)}
        if params["method"] == "adaptive":
            params["preset"] = trial.suggest_categorical("preset", list(self.presets))
            low, high = THRESHOLDS
            params["threshold"] = trial.suggest_float("threshold", low, high, log=True)
            return params
        params["count"] = trial.suggest_int("count", min(FEWEST, steps), steps)
        if params["method"] == "planned":
            names = list(self.forecasters)
            params["forecaster"] = trial.suggest_categorical("forecaster", names)
            params["span"] = trial.suggest_categorical("span", list(self.spans))
        if params["method"] == "solver":
            params["solver"] = trial.suggest_categorical("solver", list(self.solvers))
            params["rhythm"] = trial.suggest_categorical("rhythm", list(RHYTHMS))
        return params

    def grid(self) -> list[Params]:
        """Return arms all over the space: what the ranker (tune_ranker.py) chooses from."""
        whole = self.found.steps
        counts = list(dict.fromkeys(max(FEWEST, round(share * whole)) for share in GRID_SHARES))
        # Modules are planned on the residual and cost more calls, so that comes first.
        spans = [span for span in self.spans if span != "modules"] or self.spans
        planned = [(name, span) for name in FIRST_FORECASTERS for span in spans]
        arms: list[Params] = []
        for count in counts:
            arms.append({"method": "fewer", "count": count})
            arms += [
                {"method": "planned", "count": count, "forecaster": name, "span": span}
                for name, span in planned
            ]
            arms += [
                {"method": "solver", "count": count, "solver": solver, "rhythm": rhythm}
                for solver in self.solvers
                for rhythm in RHYTHMS
                # In a handful of steps a rhythm has no room.
                if rhythm == "none" or (count >= LEAST_FOR_RHYTHM and rhythm == "every 2nd")
            ]
        arms += [
            {"method": "adaptive", "preset": preset, "threshold": threshold}
            for preset in self.presets
            for threshold in GRID_THRESHOLDS
        ]
        return arms


def thresholded(profiled: Any) -> Iterator[str]:
    """Yield the presets that have a threshold, need nothing calibrated, and serve this pipeline."""
    for name in catalog.names():
        try:
            preset = catalog.load(name)
            fields = {field.name for field in dataclasses.fields(preset)}
            is_adaptive = preset.kind == "cache" and "threshold" in fields
            if is_adaptive and why_not(preset(), profiled) is None:
                yield name
        # A third-party plugin that does not load, or one that must be given options.
        except (PluginError, ValueError, TypeError):
            continue


def in_turn(arms: list[Params]) -> Iterator[Params]:
    """Yield arms so that every method, span and preset comes before any comes again."""
    queues: dict[tuple[Any, ...], list[Params]] = {}
    for arm in arms:
        key = (arm["method"], arm.get("span"), arm.get("preset"), arm.get("solver"))
        queues.setdefault(key, []).append(arm)
    while any(queues.values()):
        for queue in queues.values():
            if queue:
                yield queue.pop(0)
