"""Propose the first arms of a tuning from what other tunings measured.

After "Meta-Learning for Speeding Up Large Model Inference" (MetaInf, 2024): past runs on other
models say which acceleration suits a new one, by a regression on descriptors of both. Here a past
run is a task, and a Gaussian process predicts work and distance y of an arm a on a task t:

  y(t, a) = b_t + f(t, a),   b_t ~ N(0, OFFSET),   f ~ GP(0, k)                                  (1)
  k = k_task(t, t') (k_sort(a, a') + k_share(a, a'))                                             (2)

b_t is a task's own level, which a new task does not know and ranking does not need. k_task compares
a model's descriptors and how its uncached trajectory moves, k_sort arms of one sort by their share,
threshold and planned error, k_share any two arms by their share of the steps. The planned error is
what the schedule planner expects on the task's own trajectory; it costs no picture.

The next arm is the one that adds most to the predicted front of (work, log distance), an optimist's
view of it: EASE standard deviations below the mean. Every measured trial joins the data.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from skipstep.caching.schedule_plan import path_error, plan_schedules
from skipstep.pipelines.tune.arms import ArmSpace, Params
from skipstep.pipelines.tune.plan import Trajectories
from skipstep.plugins.profile import profile
from skipstep.samplers.solvers.solver import path_config

__all__ = ["Outlook", "Ranker", "Seen", "Task", "describe_task", "hypervolume", "shipped_tasks"]

Array = NDArray[np.float64]

PRIOR = Path(__file__).with_name("prior.json")
OFFSET, NOISE, EASE = 1.0, 0.02, 0.5
SHARE_OF_SORT, SHARE_OF_ALL = 0.6, 0.4
REACH = {"share": 0.25, "threshold": 0.5, "error": 0.7}
REACH_OF_ALL = 0.2
# Tasks with equal descriptors are alike, not equal.
TASK_LIKENESS, TASK_REACH = 0.8, 1.5
LEAST_DISTANCE = 1e-4
NAMES = ("method", "forecaster", "span", "preset", "solver", "rhythm")
OTHER_METHOD = 4.0


@dataclass(frozen=True)
class Seen:
    """One measured arm; `share` of the steps asked for, `error` is log10 of the planned error."""

    params: Params
    work: float
    distance: float
    share: float
    error: float | None = None


@dataclass
class Task:
    """One tuning: `about` for the reader, `features` for the ranker, and what was measured."""

    about: dict[str, Any]
    features: dict[str, float]
    trials: list[Seen] = field(default_factory=list)


@dataclass
class Outlook:
    """What is known of an arm before it runs: its share of the steps and its planned error."""

    space: ArmSpace
    errors: dict[tuple[str, str], dict[int, float]] = field(default_factory=dict)

    def seen(self, params: Params, work: float = 0.0, distance: float = 1.0) -> Seen:
        """Describe an arm, measured or not."""
        share = params["count"] / self.space.found.steps if "count" in params else 0.5
        error = self.error(params) if params["method"] == "planned" else None
        return Seen(params, work, distance, share, error)

    def error(self, params: Params) -> float:
        """Return log10 of the mean squared forecast error of an arm's plan."""
        found = self.space.found
        feature = "output" if params["span"] == "output" else "residual"
        feature = feature if feature in found.grams else next(iter(found.grams))
        key, count = (params["forecaster"], feature), params["count"]
        if count not in self.errors.get(key, {}):
            known = {each["count"] for each in self.space.grid() if each["method"] == "planned"}
            counts = [count] if key in self.errors else sorted({*known, count})
            grams, forecaster = found.grams[feature], self.space.forecasters[key[0]]
            plans = plan_schedules(grams, counts, forecaster, objective="squares")
            for each, plan in plans.items():
                total = path_error(grams, plan, forecaster, objective="squares")
                level = math.log10(total / found.steps + 1e-8)
                self.errors.setdefault(key, {})[each] = level
        return self.errors[key][count]


def describe_task(pipe: Any, found: Trajectories, call: dict[str, Any]) -> dict[str, float]:
    """Return the descriptors of a tuning: the model's kind, the call, and how its run moves."""
    denoisers = profile(pipe).denoisers
    try:
        is_flow = bool(path_config(pipe.scheduler).get("use_flow_sigmas"))
    except (AttributeError, ValueError):
        is_flow = False
    gram = next(iter(found.grams.values())).double().mean(0)
    moves = [
        float(gram[i, i] + gram[i + 1, i + 1] - 2 * gram[i, i + 1]) for i in range(len(gram) - 1)
    ]
    thirds = np.array_split(np.clip(moves, 1e-8, None), 3)
    return {
        "steps": math.log2(found.steps),
        "guidance": math.log2(1 + float(call.get("guidance_scale") or 1.0)),
        "unet": float(any(each.kind == "unet" for each in denoisers)),
        "video": float(any(each.is_video for each in denoisers)),
        "flow": float(is_flow),
        **{f"moves {i}": math.log10(float(each.mean())) for i, each in enumerate(thirds)},
    }


class Ranker:
    """Predict arms of a new task from those of others, and propose the next to try."""

    def __init__(self, tasks: Sequence[Task], features: dict[str, float]) -> None:
        self.tasks = [task for task in tasks if task.trials]
        self.features = features
        self.names = sorted({name for task in self.tasks for name in task.features} & set(features))
        table = np.array([self.row(task.features) for task in self.tasks])
        self.spread = np.maximum(table.std(0), 0.25) if len(table) else np.ones(len(self.names))

    def row(self, features: dict[str, float]) -> Array:
        """Return descriptors as numbers; what a task does not say is 0."""
        return np.array([features.get(name, 0.0) for name in self.names])

    def propose(
        self, candidates: Sequence[Seen], done: Sequence[Seen], most_work: float | None = None
    ) -> Seen | None:
        """Return the candidate to try next, or None where all were tried.

        Args:
            done: this task's trials so far.
            most_work: share of the work that a wanted speed-up leaves; only arms within it count,
                as long as there are any.
        """
        tried = [each.params for each in done]
        left = [each for each in candidates if each.params not in tried]
        if not left:
            return None
        work, level = self.predict(left, done)
        own = [(each.work, level_of(each.distance)) for each in done]
        if most_work is not None:
            is_in = work <= most_work
            if is_in.any():
                return left[int(np.argmin(np.where(is_in, level, np.inf)))]
        worst = max([float(level.max()), *(each for _, each in own)])
        gains = [hypervolume([*own, point], worst) for point in zip(work, level, strict=True)]
        return left[int(np.argmax(gains))]

    def predict(self, candidates: Sequence[Seen], done: Sequence[Seen]) -> tuple[Array, Array]:
        """Return work and optimistic log10 distance of candidates, by equations (1) and (2)."""
        everything = [*self.tasks, Task({}, self.features, list(done))]
        rows = [(i, seen) for i, task in enumerate(everything) for seen in task.trials]
        new = [(len(everything) - 1, seen) for seen in candidates]
        placed = np.array([self.row(task.features) / self.spread for task in everything])
        known = self.kernel(rows, rows, placed) + NOISE * np.eye(len(rows))
        across, own = self.kernel(new, rows, placed), self.kernel(new, new, placed)
        values = np.array([[seen.work, level_of(seen.distance)] for _, seen in rows])
        mean = values.mean(0)
        solved = np.linalg.solve(known, np.column_stack([values - mean, across.T]))
        found = mean + across @ solved[:, :2]
        spread = np.sqrt(np.clip(np.diag(own - across @ solved[:, 2:]), 0, None))
        return np.clip(found[:, 0], 0.02, 1.2), found[:, 1] - EASE * spread

    def kernel(
        self, a: Sequence[tuple[int, Seen]], b: Sequence[tuple[int, Seen]], placed: Array
    ) -> Array:
        """Return the covariance of (1) between two lists of (task, arm)."""
        i, j = np.array([task for task, _ in a]), np.array([task for task, _ in b])
        apart = (placed[:, None] - placed[None]) ** 2
        alike = TASK_LIKENESS * np.exp(-apart.mean(-1) / (2 * TASK_REACH**2))
        near = np.where(np.eye(len(placed), dtype=bool), 1.0, alike)[np.ix_(i, j)]
        x, y = numbers(seen for _, seen in a), numbers(seen for _, seen in b)
        reach = np.array([*REACH.values()])
        squares = ((x[:, None] - y[None]) / reach) ** 2
        sort = np.exp(-squares.sum(-1) / 2 - unlike(a, b))
        share = np.exp(-(((x[:, None, 0] - y[None, :, 0]) / REACH_OF_ALL) ** 2) / 2)
        covariance: Array = near * (SHARE_OF_SORT * sort + SHARE_OF_ALL * share)
        covariance += OFFSET * (i[:, None] == j[None])
        return covariance


def numbers(arms: Iterable[Seen]) -> Array:
    """Return each arm's share, log10 threshold and planned error; 0 for what it has not."""
    return np.array(
        [
            [seen.share, math.log10(seen.params.get("threshold", 1.0)), seen.error or 0.0]
            for seen in arms
        ]
    )


def unlike(a: Sequence[tuple[int, Seen]], b: Sequence[tuple[int, Seen]]) -> Array:
    """Count in how many names arms differ; another method counts as OTHER_METHOD names."""
    x, y = codes(a), codes(b)
    differ = x[:, None] != y[None]
    return np.where(differ[:, :, 0], OTHER_METHOD, differ.sum(-1)).astype(np.float64)


def codes(arms: Sequence[tuple[int, Seen]]) -> NDArray[np.int64]:
    """Return each arm's names as numbers, the method first."""
    return np.array([[crc32(str(s.params.get(n)).encode()) for n in NAMES] for _, s in arms])


def level_of(distance: float) -> float:
    """Return log10 of a feature distance that may be 0."""
    return math.log10(max(distance, LEAST_DISTANCE))


def hypervolume(points: Iterable[tuple[float, float]], worst: float, most: float = 1.0) -> float:
    """Return the area between a front of (work, level), both the smaller the better, and a corner.

    >>> hypervolume([(0.5, -1.0), (0.25, 0.0)], worst=0.0)
    0.5
    """
    total, below = 0.0, worst
    for work, level in sorted(points):
        if level < below and work < most:
            total += (most - work) * (below - level)
            below = level
    return float(total)


def shipped_tasks() -> list[Task]:
    """Return the tasks that come with skipstep (python -m benchmarks.ranker --measure)."""
    return read_tasks(PRIOR) if PRIOR.is_file() else []


def read_tasks(path: Path) -> list[Task]:
    """Read tasks as `write_tasks` writes them."""
    data = json.loads(path.read_text(encoding="utf-8"))
    return TypeAdapter(list[Task]).validate_python(data["tasks"])


def write_tasks(path: Path, tasks: Sequence[Task]) -> None:
    """Write tasks as JSON, one trial a line."""
    written = []
    for task in tasks:
        data = asdict(task)
        lines = ",\n   ".join(json.dumps(rounded(trial)) for trial in data["trials"])
        head = {"about": data["about"], "features": rounded(data["features"])}
        written.append(f'  {json.dumps(head)[:-1]}, "trials": [\n   {lines}]}}')
    body = ",\n".join(written)
    path.write_text(f'{{"version": 1, "tasks": [\n{body}\n]}}\n', encoding="utf-8")


def rounded(data: dict[str, Any]) -> dict[str, Any]:
    """Return a dict with its floats cut to five digits."""
    return {
        name: float(f"{value:.5g}") if isinstance(value, float) else value
        for name, value in data.items()
    }
