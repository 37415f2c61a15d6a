"""Polish planned schedules by evolution on real runs: ECAD's search, on steps.

"Evolutionary Caching to Accelerate Your Off-the-Shelf Diffusion Model", Aggarwal, Shrivastava,
Gwilliam 2025 (arXiv:2506.15682): a genome says what is recomputed, and NSGA-II minimises work and
loss of quality at once. Here a genome has one bit a step, the first generation is planned
(caching/schedule_plan.py) beside an even rhythm, and the loss is the feature distance to the
uncached pictures. It costs a run of all prompts a trial, where planning costs one in all: polish a
schedule that will be used often, on prompts apart from those it is judged on. One bit for every
module is `skipstep.pipelines.tune.ecad`.

Differs from the authors' code: one bit a step for the whole span, not one a block and module;
fidelity instead of ImageReward; a planned first generation; NSGA-II is optuna's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skipstep.caching.gates.schedule import Schedule, ScheduleGate
from skipstep.caching.product import Cache
from skipstep.caching.schedule_plan import Objective
from skipstep.pipelines.compare.run import bare, silent
from skipstep.pipelines.progress import Progress
from skipstep.pipelines.tune.evolution import Genome, check_search, evolve
from skipstep.pipelines.tune.plan import Trajectories, schedule_cache
from skipstep.pipelines.tune.trial import Outcome, Trier
from skipstep.plugins.errors import PluginError

__all__ = ["Polished", "polish"]

OBJECTIVES: tuple[Objective, ...] = ("squares", "sum", "minimax")


@dataclass(frozen=True)
class Polished:
    """Every schedule that was tried, with its outcome on the prompts; the first is the plan."""

    tried: list[tuple[Cache, Outcome]]

    @property
    def front(self) -> list[tuple[Cache, Outcome]]:
        """Return what nothing beats in both work and feature distance, by rising work."""
        front: list[tuple[Cache, Outcome]] = []
        for each in sorted(self.tried, key=lambda pair: (pair[1].work, pair[1].distance)):
            if not front or each[1].distance < front[-1][1].distance:
                front.append(each)
        return front

    @property
    def best(self) -> tuple[Cache, Outcome]:
        """Return the closest of those that do no more work than the plan."""
        most = self.tried[0][1].work * (1 + 1e-9)
        return min((p for p in self.tried if p[1].work <= most), key=lambda p: p[1].distance)


def polish(
    pipe: Any,
    found: Trajectories,
    count: int,
    prompts: Sequence[Any],
    *,
    forecaster: Any = "lagrange",
    span: Any = "residual",
    trials: int = 60,
    population: int = 12,
    seed: int = 0,
    progress: Progress | None = None,
    **call: Any,
) -> Polished:
    """Evolve schedules from the plans of about `count` steps; prompt i is made from seed + i.

    Raises PluginError for unusable arguments and where optuna is not installed.
    """
    check_search("polish", trials=trials, population=population, prompts=len(prompts))
    plan = found.cache(count, forecaster, span)
    trier = Trier(pipe, prompts, range(seed, seed + len(prompts)), found.steps, call)
    later = range(1, found.steps)
    done: list[Cache] = []

    def run(genome: Genome) -> tuple[Cache, Outcome]:
        compute = (0, *(step for step, bit in zip(later, genome, strict=True) if bit))
        if progress is not None:
            progress(len(done), trials, f"{len(compute)} steps")
        done.append(with_steps(found, plan, compute))
        return done[-1], trier.run([done[-1]])

    with silent(pipe), bare(pipe):
        tried = evolve(
            [f"step {step}" for step in later],
            [tuple(i in steps for i in later) for steps in first_generation(found, plan, count)],
            run,
            lambda pair: (pair[1].work, pair[1].distance),
            trials=trials,
            population=population,
            seed=seed,
        )
    return Polished(list(tried.values()))


def first_generation(found: Trajectories, plan: Cache, count: int) -> list[tuple[int, ...]]:
    """Return the plan, other objectives' plans, smaller and larger ones, and an even rhythm."""
    feature = found.feature_of(plan.span)
    counts = [c for c in (count, count - 1, count + 1) if 1 <= c <= found.steps]
    plans = [
        found.schedule(c, plan.forecaster, feature=feature, objective=objective).compute
        for c in counts
        for objective in OBJECTIVES
    ]
    even = tuple(sorted({round(i * found.steps / count) for i in range(count)}))
    return list(dict.fromkeys([schedule_of(plan).compute, *plans, even]))


def schedule_of(cache: Cache) -> Schedule:
    """Return a planned cache's schedule."""
    if not isinstance(cache.gate, ScheduleGate):
        raise PluginError(f"polish: gate {cache.gate.type!r} has no schedule")
    return cache.gate.schedule


def with_steps(found: Trajectories, plan: Cache, compute: tuple[int, ...]) -> Cache:
    """Return the plan's cache with other steps, and weights for them if it has fitted ones."""
    schedule = found.of_steps(compute, plan.forecaster, found.feature_of(plan.span))
    return schedule_cache(schedule, plan.forecaster, plan.span)
