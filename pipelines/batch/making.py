"""From rows to pictures: one pipeline call a batch, and what to do when it fails.

    out of memory     two halves; a single row that does not fit is given up (status "oom")
    any other error   every row alone; a row that fails alone is given up ("error")
    NaN, one colour   that row once more, alone and without plugins; then given up ("nan", "black")

Each row has its own generator on the CPU, so its noise depends on its seed alone. In the mode
"solo" a batch is one row; in "seeded" the size that once did not fit is not tried again.
"""

import contextlib
import gc
import inspect
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.compare import prompt_parameter
from skipstep.pipelines.generate import size_arguments
from skipstep.pipelines.pictures import read_pictures, to_bytes
from skipstep.plugins.errors import Incompatible
from skipstep.plugins.options import build

__all__ = ["Made", "Maker", "Mode"]

Mode = Literal["planned", "seeded", "solo"]

LONGEST_ERROR = 500
# The standard deviation of a picture in [-1, 1] below which it is one colour: a step of 8 bits.
LEAST_SPREAD = 2 / 255


@dataclass(frozen=True, slots=True)
class Made:
    """A row's picture [height, width, 3], or None and why."""

    row: Row
    status: str
    picture: NDArray[np.uint8] | None = None
    error: str | None = None
    batch_size: int = 1
    seconds: float = 0.0
    fraction: float = 1.0
    without_plugins: bool = False


@dataclass(frozen=True, slots=True)
class Called:
    """What one pipeline call returned."""

    pictures: Float[Tensor, "b f 3 height width"]
    seconds: float
    fraction: float


class Maker:
    """Makes pictures with one pipeline; plugins stay attached from batch to batch."""

    def __init__(self, pipe: Any, mode: Mode = "planned") -> None:
        self.pipe = pipe
        self.mode = mode
        self.most: int | None = None
        self.parameters = inspect.signature(type(pipe).__call__).parameters
        self.attached = contextlib.ExitStack()
        self.active = "[]"
        if hasattr(pipe, "set_progress_bar_config"):
            pipe.set_progress_bar_config(disable=True)
        if prompt_parameter(pipe) != "prompt":
            raise Incompatible(
                f"{type(pipe).__name__} is told what to make by class numbers: batch takes prompts"
            )

    def close(self) -> None:
        """Take the plugins off."""
        self.attached.close()
        self.active = "[]"

    def use(self, plugins: str) -> None:
        """Switch to a recipe, unless it is on already."""
        if plugins != self.active:
            self.close()
            self.attached.enter_context(
                self.pipe.plugins(*(build(entry) for entry in json.loads(plugins)))
            )
            self.active = plugins

    def make(self, rows: Sequence[Row]) -> list[Made]:
        """Make the pictures of rows of one group, in their order."""
        if self.most is not None and len(rows) > self.most:
            return self.make(rows[: self.most]) + self.make(rows[self.most :])
        try:
            called = self.call(rows, rows[0].plugins)
        except Exception as error:
            reason = in_words(error)
            is_memory = is_out_of_memory(error)
        else:
            return [self.judge(row, called, place, len(rows)) for place, row in enumerate(rows)]
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
            called = self.call([row], row.plugins)
        except Exception as error:
            return Made(row, "oom" if is_out_of_memory(error) else "error", error=in_words(error))
        return self.judge(row, called, 0, 1)

    def judge(self, row: Row, called: Called, place: int, count: int) -> Made:
        """Take a row's picture out of a call, or make it once more if it is none."""
        picture = called.pictures[place : place + 1]
        if why_no_picture(picture) is None:
            return self.accept(row, picture, called, count)
        try:
            again = self.call([row], "[]")
        except Exception as error:
            return Made(row, "error", error=in_words(error))
        why = why_no_picture(again.pictures)
        if why is None:
            return self.accept(row, again.pictures, again, 1, without_plugins=row.plugins != "[]")
        words = "holds values that are not numbers" if why == "nan" else "is one colour"
        return Made(row, why, error=f"the picture {words}, also alone and without plugins")

    def accept(
        self,
        row: Row,
        picture: Float[Tensor, "1 1 3 height width"],
        called: Called,
        count: int,
        *,
        without_plugins: bool = False,
    ) -> Made:
        """Return a good picture."""
        return Made(
            row,
            "ok",
            to_bytes(picture)[0],
            batch_size=count,
            seconds=called.seconds / count,
            fraction=called.fraction,
            without_plugins=without_plugins,
        )

    def call(self, rows: Sequence[Row], plugins: str) -> Called:
        """Call the pipeline once."""
        first = rows[0]
        arguments: dict[str, Any] = {
            "prompt": [row.prompt for row in rows],
            "generator": [torch.Generator("cpu").manual_seed(row.seed) for row in rows],
            "num_inference_steps": first.steps,
            "output_type": "np",
        }
        if first.width is not None:
            arguments |= size_arguments(self.pipe, f"{first.width}x{first.height}")
        if first.guidance is not None:
            arguments["guidance_scale"] = first.guidance
        if first.negative is not None:
            arguments["negative_prompt"] = [row.negative for row in rows]
        self.check(arguments)
        self.use(plugins)
        started = time.monotonic()
        result = self.pipe(**arguments)
        pictures = read_pictures(result)
        seconds = time.monotonic() - started
        if pictures.shape[1] > 1:
            raise Incompatible(f"{type(self.pipe).__name__} makes clips, batch writes pictures")
        if len(pictures) != len(rows):
            raise Incompatible(
                f"{type(self.pipe).__name__} made {len(pictures)} pictures of {len(rows)} prompts"
            )
        fraction = self.pipe.plugin_report().fraction if plugins != "[]" else 1.0
        return Called(pictures, seconds, fraction)

    def check(self, arguments: dict[str, Any]) -> None:
        """Refuse fields that this pipeline does not take."""
        kinds = [parameter.kind for parameter in self.parameters.values()]
        if inspect.Parameter.VAR_KEYWORD in kinds:
            return
        for name in arguments:
            if name not in self.parameters:
                raise Incompatible(f"{type(self.pipe).__name__} takes no {name}: leave it out")


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
