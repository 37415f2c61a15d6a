"""Does what other tunings measured bring a new one to its front in fewer trials?

    python -m benchmarks.ranker --measure           measures every arm of every task (2 CPU
                                                    minutes) and writes pipelines/tune/prior.json
    python -m benchmarks.ranker                     plays the tunings again from that file

A task is a reference model with a number of steps, a guidance and a scheduler. Every arm of the
grid was measured on it once, so a search can be played with no picture made: it proposes an arm and
is told what was measured. Three searches are played: the ranker, which has seen the other tasks
only (`--leave model`: only those of other models); the cold start of `autotune`, one arm of each
sort and then TPE, whose proposals are moved to the nearest measured arm; and drawing by lot.
Counted are trials until 95 % of the area under the whole grid's front is reached, 40 at most.
"""

import argparse
import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from skipstep.pipelines.tune.arms import ArmSpace, Params, describe, known_forecasters
from skipstep.pipelines.tune.ranker import (
    PRIOR,
    Outlook,
    Ranker,
    Seen,
    Task,
    describe_task,
    hypervolume,
    level_of,
    read_tasks,
    write_tasks,
)

TASKS: tuple[dict[str, Any], ...] = (
    {"model": "picture", "steps": 10, "guidance": 3.0, "size": 64},
    {"model": "unet", "steps": 10, "guidance": 3.0, "size": 64},
    {"model": "picture", "steps": 14, "guidance": 5.0, "size": 64},
    {"model": "unet", "steps": 14, "guidance": 5.0, "size": 64, "scheduler": "DDIMScheduler"},
)
PROMPTS = 1
ENOUGH = 0.95
SPEEDS = (1.5, 2.0, 3.0)
LOOKS = (4, 8, 12, 16)
SEEDS = 5
MOST = 40

Search = Callable[[Task, int], Iterator[Seen]]


def measure(about: dict[str, Any]) -> Task:
    """Measure every arm of the grid on one task."""
    from skipstep.pipelines.reference.load import load_reference
    from skipstep.pipelines.reference.prompts import load_prompts
    from skipstep.pipelines.tune.plan import instrument
    from skipstep.pipelines.tune.solvers import Solvers
    from skipstep.pipelines.tune.trial import Trier
    from skipstep.plugins.errors import PluginError

    torch.set_num_threads(1)
    pipe = load_reference(about["model"])
    pipe.set_progress_bar_config(disable=True)
    if "scheduler" in about:
        import diffusers

        kind = getattr(diffusers, about["scheduler"])
        pipe.scheduler = kind.from_config(pipe.scheduler.config)
    prompts = [each["prompt"] for each in load_prompts()[7::80]][:PROMPTS]
    call = {"guidance_scale": about["guidance"]} | dict.fromkeys(("height", "width"), about["size"])
    found = instrument(pipe, prompts, steps=about["steps"], features=("residual", "output"), **call)
    space = ArmSpace.of(pipe, found, Solvers(pipe, prompts, about["steps"], 0, call))
    outlook = Outlook(space)
    trier = Trier(pipe, prompts, range(PROMPTS), about["steps"], call)
    task = Task(dict(about), describe_task(pipe, found, call))
    for params in space.grid():
        try:
            outcome = trier.run(space.plugins(params), space.steps(params))
        except (PluginError, ValueError) as error:
            print(f"{describe(params)}: {error}", flush=True)
            continue
        task.trials.append(outlook.seen(params, outcome.work, outcome.distance))
        print(f"{describe(params)}: {outcome.work:.3f} {outcome.distance:.4f}", flush=True)
    return task


def by_ranker(others: Sequence[Task]) -> Search:
    """Return the search that the ranker makes of other tasks."""

    def search(task: Task, seed: int) -> Iterator[Seen]:
        ranker, done = Ranker(others, task.features), list[Seen]()
        while (chosen := ranker.propose(task.trials, done)) is not None:
            done.append(chosen)
            yield chosen

    return search


def by_cold_start(task: Task, seed: int) -> Iterator[Seen]:
    """Yield what autotune tries without any knowledge: one of each sort, then TPE."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space, yielded = space_of(task), list[Seen]()
    study = optuna.create_study(
        directions=["minimize", "minimize"],
        sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=0),
    )
    for params in space.first(None):
        study.enqueue_trial(params)
    for _ in range(8 * MOST):
        trial = study.ask()
        seen = nearest(space.suggest(trial), task)
        if seen is None:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        study.tell(trial, [seen.work, seen.distance])
        if seen not in yielded:
            yielded.append(seen)
            yield seen


def by_lot(task: Task, seed: int) -> Iterator[Seen]:
    """Yield the arms in a random order."""
    yield from random.Random(seed).sample(task.trials, len(task.trials))


def space_of(task: Task) -> ArmSpace:
    """Return the space of a task without its pipeline, to draw proposals from."""
    from skipstep.pipelines.tune.plan import Trajectories

    def names(option: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(s.params[option] for s in task.trials if option in s.params))

    found = Trajectories({}, task.about["steps"], {})
    nothing: Any = None
    return ArmSpace(
        found, names("span"), names("preset"), known_forecasters(), names("solver"), nothing
    )


def nearest(params: Params, task: Task) -> Seen | None:
    """Return the measured arm that differs from a proposal in its numbers only, and least there."""
    numbers = {"count", "threshold"}
    alike = [
        seen
        for seen in task.trials
        if all(seen.params.get(k) == v for k, v in params.items() if k not in numbers)
    ]

    def apart(seen: Seen) -> float:
        return sum(abs(level_of(seen.params[k]) - level_of(params[k])) for k in numbers & {*params})

    return min(alike, key=apart, default=None)


def area(seen: Sequence[Seen], task: Task) -> float:
    """Return the area under a front of the task's arms."""
    worst = max(level_of(each.distance) for each in task.trials)
    return hypervolume([(each.work, level_of(each.distance)) for each in seen], worst)


def trials_needed(order: Sequence[Seen], task: Task) -> int:
    """Return after how many trials the front is reached, as far as ENOUGH says."""
    whole = area(task.trials, task)
    for count in range(1, len(order) + 1):
        if area(order[:count], task) >= ENOUGH * whole:
            return count
    return MOST


def behind(order: Sequence[Seen], task: Task, speed: float) -> float:
    """Return how many times farther the best arm of this speed-up is than the grid's best."""

    def best(seen: Sequence[Seen]) -> float:
        meeting = [each.distance for each in seen if each.work <= 1 / speed]
        return 10 ** level_of(min(meeting, default=max(each.distance for each in task.trials)))

    return best(order) / best(task.trials)


def play(tasks: Sequence[Task], leave: str) -> None:
    """Play every search on every task and print what came of it."""
    console = Console(width=120)
    needed = Table(title=f"trials until {ENOUGH:.0%} of the front, leaving out one {leave}")
    for heading in ("task", "arms", "ranker", "cold start", "by lot"):
        needed.add_column(heading, justify="left" if heading == "task" else "right")
    ratios: dict[str, dict[int, list[float]]] = {}
    sums: dict[str, list[float]] = {}
    for task in tasks:
        others = [
            each
            for each in tasks
            if (
                each.about["model"] != task.about["model"] if leave == "model" else each is not task
            )
        ]
        searches = {"ranker": by_ranker(others), "cold start": by_cold_start, "by lot": by_lot}
        row = []
        for name, search in searches.items():
            counts = []
            for seed in range(1 if name == "ranker" else SEEDS):
                order = list(islice(search(task, seed), MOST))
                counts.append(trials_needed(order, task))
                for look in LOOKS:
                    ratios.setdefault(name, {}).setdefault(look, []).extend(
                        level_of(behind(order[:look], task, speed)) for speed in SPEEDS
                    )
            row.append(statistics.fmean(counts))
            sums.setdefault(name, []).append(row[-1])
        title = ", ".join(str(value) for value in task.about.values())
        needed.add_row(title, str(len(task.trials)), *(f"{count:.1f}" for count in row))
    needed.add_row("mean", "", *(f"{statistics.fmean(counts):.1f}" for counts in sums.values()))
    console.print(needed)
    speeds = ", ".join(f"{speed:g}x" for speed in SPEEDS)
    console.print(f"Best distance at {speeds} over the grid's best there, geometric mean:")
    for name, looks in ratios.items():
        parts = [f"{10 ** statistics.fmean(v):.2f} after {look}" for look, v in looks.items()]
        console.print(f"  {name}: {', '.join(parts)}")


def main() -> None:
    """Measure, or play."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--task", type=int, nargs="+", help="only these of the tasks, from 0")
    parser.add_argument("--leave", choices=("task", "model"), default="task")
    parser.add_argument("--file", type=Path, default=PRIOR)
    chosen = parser.parse_args()
    tasks = read_tasks(chosen.file) if chosen.file.is_file() else []
    if chosen.measure:
        for about in [TASKS[i] for i in chosen.task or range(len(TASKS))]:
            if all(task.about != about for task in tasks):
                tasks.append(measure(about))
                write_tasks(chosen.file, tasks)
    if not chosen.measure or len(tasks) == len(TASKS):
        play(tasks, chosen.leave)


if __name__ == "__main__":
    main()
