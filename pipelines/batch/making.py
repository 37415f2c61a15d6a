"""The ladder that a batch goes down when it fails, whatever a job makes of its rows.

    out of memory     two halves; a single row that does not fit is given up (status "oom")
    any other error   every row alone; a row that fails alone is given up ("error")
    NaN, one colour   that row once more, alone and without plugins; then given up ("nan", "black")

What is made of a row is a Task's affair: drawing.py, comparing.py, rebuilding.py. In the mode
"solo" a batch is one row; in "seeded" the size that once did not fit is not tried again.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.batch.rows import Row

__all__ = ["Made", "Maker", "Mode", "Task", "why_no_picture"]

Mode = Literal["planned", "seeded", "solo"]

LONGEST_ERROR = 500
# The standard deviation of a picture in [-1, 1] below which it is one colour: a step of 8 bits.
LEAST_SPREAD = 2 / 255


@dataclass(frozen=True, slots=True)
class Made:
    """What was made of a row: files by their ending, the first the one to look at; or why not.

    `described` says how they were made; `figures` is what was measured on them.
    """

    row: Row
    status: str
    files: dict[str, bytes] = field(default_factory=dict)
    described: dict[str, Any] = field(default_factory=dict)
    error: str | None = None
    batch_size: int = 1
    seconds: float = 0.0
    fraction: float = 1.0
    without_plugins: bool = False
    figures: dict[str, float] = field(default_factory=dict)


class Task(Protocol):
    """What a job makes of its rows, with one pipeline."""

    def use(self, plugins: str) -> None:
        """Switch to a recipe, which stays on from batch to batch.

        Raises Incompatible if it cannot serve the pipeline.
        """

    def make(self, rows: Sequence[Row], *, plain: bool = False) -> list[Made]:
        """Make rows of one group, in their order; `plain` is without plugins.

        A row whose result is no good has the status "nan" or "black"; what cannot be made at all
        raises.
        """

    def close(self) -> None:
        """Take the plugins off."""


class Maker:
    """Makes batches with a task, and does not let one row's failure be its neighbours'."""

    def __init__(self, task: Task, mode: Mode = "planned") -> None:
        self.task = task
        self.mode = mode
        self.most: int | None = None

    def make(self, rows: Sequence[Row]) -> list[Made]:
        """Make rows of one group, in their order."""
        if self.most is not None and len(rows) > self.most:
            return self.make(rows[: self.most]) + self.make(rows[self.most :])
        try:
            made = self.task.make(rows)
        except Exception as error:
            reason = in_words(error)
            is_memory = is_out_of_memory(error)
        else:
            return [self.judge(each) for each in made]
        # Here the traceback, and with it every tensor of the call, is gone.
        free_memory()
        if not is_memory:
            return [self.make_alone(row) for row in rows]
        if len(rows) == 1:
            return [Made(rows[0], "oom", error=reason)]
        half = (len(rows) + 1) // 2
        if self.mode == "seeded":
            self.most = half
        return self.make(rows[:half]) + self.make(rows[half:])

    def make_alone(self, row: Row) -> Made:
        """Make one row again, for the last time."""
        try:
            (made,) = self.task.make([row])
        except Exception as error:
            return Made(row, "oom" if is_out_of_memory(error) else "error", error=in_words(error))
        return self.judge(made)

    def judge(self, made: Made) -> Made:
        """Take what is good, and make the rest once more, alone and without plugins."""
        if made.status == "ok":
            return made
        try:
            (again,) = self.task.make([made.row], plain=True)
        except Exception as error:
            return Made(made.row, "error", error=in_words(error))
        if again.status == "ok":
            return replace(again, without_plugins=made.row.plugins != "[]")
        return replace(again, error=f"{again.error}, also alone and without plugins")


def why_no_picture(picture: Float[Tensor, "1 f 3 height width"]) -> str | None:
    """Return "nan", "black" or None.

    >>> why_no_picture(torch.zeros(1, 1, 3, 4, 4))
    'black'
    """
    if not bool(torch.isfinite(picture).all()):
        return "nan"
    return "black" if float(picture.std(correction=0)) < LEAST_SPREAD else None


def is_out_of_memory(error: Exception) -> bool:
    """Say whether fewer rows may succeed."""
    is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return is_memory or should_reduce_batch_size(error)


def in_words(error: Exception) -> str:
    """Return an error as one short line without control characters."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    plain = "".join(letter if letter.isprintable() else "?" for letter in text)
    return plain if len(plain) <= LONGEST_ERROR else f"{plain[: LONGEST_ERROR - 3]}..."


def free_memory() -> None:
    """Give back what a failed call held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
