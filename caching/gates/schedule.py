"""Compute a fixed list of steps, read from a file: what a search over schedules hands on.

A schedule is what ECAD ("Evolutionary Caching to Accelerate Your Off-the-Shelf Diffusion Model",
Aggarwal, Shrivastava, Gwilliam 2025, arXiv:2506.15682) evolves, what a search over few calibration
prompts finds, or what you write by hand. It looks at nothing, so it costs no host synchronisation;
it fails on models, samplers and numbers of steps it was not made for.

The file: {"version": 1, "kind": "skipstep-schedule", "steps": 20, "compute": [0, 1, 2, 5, 9, ...],
"fingerprint": {...}}; "weights" may hold what was fitted for the skipped steps (forecaster
`fitted`). In a run of T steps that is not S = `steps`, step i stands for the nearest step of the
schedule, round(i (S - 1) / (T - 1)), which keeps the share and the order.

Differs from the authors' code: one decision per step for the whole span, not per block and module.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from jaxtyping import Shaped
from pydantic import BeforeValidator, ConfigDict, Field, JsonValue
from torch import Tensor

from skipstep.caching.base import Choice, Gate, LooksAt, Seen, Step
from skipstep.files.artefact import load_artefact, save_artefact

__all__ = ["Schedule", "ScheduleGate", "ScheduleState", "nearest_step", "read_schedule"]

logger = logging.getLogger(__name__)

MOST_WEIGHTS = 16


def nearest_step(index: int, count: int, made_for: int) -> int:
    """Return the step of a run of `made_for` steps that step `index` of `count` is nearest to.

    >>> [nearest_step(i, 5, 9) for i in range(5)], [nearest_step(i, 5, 3) for i in range(5)]
    ([0, 2, 4, 6, 8], [0, 0, 1, 2, 2])
    """
    return round(index * (made_for - 1) / (count - 1)) if count > 1 else 0


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Schedule:
    """Say which steps of a run of `steps` are computed, and what the list was made for."""

    version: Annotated[Literal[1], Field(description="Version of the file's form.")] = 1
    kind: Annotated[Literal["skipstep-schedule"], Field(description="Sort of file.")] = (
        "skipstep-schedule"
    )
    steps: Annotated[int, Field(strict=True, ge=1, le=10_000, description="Steps of the run.")]
    compute: Annotated[
        tuple[Annotated[int, Field(strict=True, ge=0)], ...],
        Field(min_length=1, max_length=10_000, description="Computed steps, ascending, from 0."),
    ]
    fingerprint: Annotated[
        dict[str, JsonValue], Field(max_length=64, description="What it was made for.")
    ] = Field(default_factory=dict)
    weights: Annotated[
        tuple[
            Annotated[
                tuple[Annotated[float, Field(allow_inf_nan=False)], ...],
                Field(min_length=1, max_length=MOST_WEIGHTS),
            ],
            ...,
        ],
        Field(
            max_length=10_000,
            description="For each skipped step, in order, the weights of the last computed values "
            "in its forecast, newest first; empty where nothing was fitted.",
        ),
    ] = ()

    def __post_init__(self) -> None:
        """Refuse lists that are no schedule."""
        if self.compute[0] != 0:
            raise ValueError("compute must begin with step 0: before it there is nothing to reuse")
        if any(b <= a for a, b in zip(self.compute, self.compute[1:], strict=False)):
            raise ValueError("compute must ascend, with no step twice")
        if self.compute[-1] >= self.steps:
            raise ValueError(
                f"compute goes up to step {self.compute[-1]}, but {self.steps} steps end at "
                f"{self.steps - 1}"
            )
        if not self.weights:
            return
        skipped = self.skipped()
        if len(self.weights) != len(skipped):
            raise ValueError(
                f"weights are for {len(self.weights)} steps, but {len(skipped)} are skipped: give "
                "one list for each of them, or none at all"
            )
        for (step, anchors), weights in zip(skipped, self.weights, strict=True):
            if len(weights) > len(anchors):
                raise ValueError(
                    f"step {step} has {len(weights)} weights, but only {len(anchors)} steps are "
                    "computed before it"
                )

    def skipped(self) -> list[tuple[int, tuple[int, ...]]]:
        """Return every skipped step with the last computed steps before it, newest first.

        >>> Schedule(steps=4, compute=(0, 2)).skipped()
        [(1, (0,)), (3, (2, 0))]
        """
        found, computed = [], set(self.compute)
        before: tuple[int, ...] = ()
        for step in range(self.steps):
            if step in computed:
                before = (step, *before)[:MOST_WEIGHTS]
            else:
                found.append((step, before))
        return found

    @classmethod
    def load(cls, path: str | Path) -> "Schedule":
        """Read a schedule file; raises ValueError that names the file and the fault."""
        return load_artefact(path, cls, kind="skipstep-schedule")

    def save(self, path: str | Path) -> None:
        """Write this schedule as a file that `load` reads."""
        save_artefact(path, self)


def read_schedule(value: Any) -> Any:
    """Return the schedule of a file, for an option that takes its path; the rest as it is."""
    return Schedule.load(value) if isinstance(value, str | Path) else value


@dataclass(slots=True)
class ScheduleState:
    """Hold the number of rows, and whether this run's mismatch was told."""

    rows: int
    told: bool = False


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ScheduleGate(Gate[ScheduleState]):
    """Compute the steps of a schedule, the same for all samples."""

    looks_at: ClassVar[LooksAt] = "step"

    type: Annotated[Literal["schedule"], Field(description="Tag of this gate.")] = "schedule"
    schedule: Annotated[
        Schedule,
        BeforeValidator(read_schedule, json_schema_input_type=str | Schedule),
        Field(description="Path of a schedule file, or the schedule itself."),
    ]
    on_mismatch: Annotated[
        Literal["error", "warn"],
        Field(description="Another model, scheduler or number of steps: refuse it, or warn."),
    ] = "error"

    def init(self, rows: int) -> ScheduleState:
        """Return a state that has told nothing."""
        return ScheduleState(rows)

    def decide(
        self, state: ScheduleState, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Return the schedule's choice; raises ValueError on a mismatch that is to be an error."""
        told = self.mismatch(step.count)
        if told is not None and not state.told:
            if self.on_mismatch == "error":
                raise ValueError(f"{told}; run {self.schedule.steps} steps or set on_mismatch")
            logger.warning("%s; nearest steps are taken", told)
            state.told = True
        nearest = nearest_step(step.index, step.count, self.schedule.steps)
        return [Choice(nearest in self.schedule.compute, "schedule")] * state.rows

    def observe(self, state: ScheduleState, seen: Seen) -> None:
        """Learn nothing."""

    def mismatch(self, count: int) -> str | None:
        """Return in words that a run of `count` steps is not what the schedule was made for."""
        if count == self.schedule.steps:
            return None
        return f"the schedule is for {self.schedule.steps} steps and this run has {count}"
