"""Prompts to pictures and clips: one pipeline call a batch.

Each row has its own generator on the CPU, so its noise depends on its seed alone. A still picture
is a PNG, a clip a WebP or MP4; both say how they were made.
"""

import contextlib
import inspect
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.batch.making import Made, why_no_picture
from skipstep.pipelines.batch.metadata import describe_row, origin_of, parameters
from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.clip_files import FRAMES_PER_SECOND, clip_bytes
from skipstep.pipelines.compare.run import prompt_parameter
from skipstep.pipelines.generate import size_arguments
from skipstep.pipelines.pictures import read_pictures, to_bytes, to_image, to_png
from skipstep.plugins.errors import Incompatible
from skipstep.plugins.options import build

__all__ = ["Drawing", "arguments_of", "encode", "no_picture", "quiet_pipeline"]

WORDS = {"nan": "the picture holds values that are not numbers", "black": "it is of one colour"}


@dataclass(frozen=True, slots=True)
class Called:
    """What one pipeline call returned."""

    pictures: Float[Tensor, "b f 3 height width"]
    seconds: float
    fraction: float


class Drawing:
    """Draws rows with one pipeline; plugins stay attached from batch to batch.

    Args:
        model: what to note as the model.
        metadata: whether files say how they were made.
        clips: "webp" or "mp4", for pipelines that make clips.
    """

    def __init__(
        self, pipe: Any, *, model: str = "", metadata: bool = True, clips: str = "webp"
    ) -> None:
        self.pipe = quiet_pipeline(pipe)
        self.origin = origin_of(pipe, model)
        self.metadata = metadata
        self.clips = clips
        self.attached = contextlib.ExitStack()
        self.active = "[]"

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

    def make(self, rows: Sequence[Row], *, plain: bool = False) -> list[Made]:
        """Draw rows of one group in one call."""
        plugins = "[]" if plain else rows[0].plugins
        called = self.call(rows, plugins)
        return [self.take(row, called, place, plugins) for place, row in enumerate(rows)]

    def take(self, row: Row, called: Called, place: int, plugins: str) -> Made:
        """Take one row's picture out of a call."""
        picture = called.pictures[place : place + 1]
        if (why := why_no_picture(picture)) is not None:
            return no_picture(row, why)
        count = len(called.pictures)
        described = describe_row(
            row, self.origin, batch_size=count, fraction=called.fraction, plugins=plugins
        )
        ending, content = encode(picture, described if self.metadata else None, self.clips)
        return Made(
            row,
            "ok",
            {ending: content},
            described,
            batch_size=count,
            seconds=called.seconds / count,
            fraction=called.fraction,
        )

    def call(self, rows: Sequence[Row], plugins: str) -> Called:
        """Call the pipeline once."""
        arguments = arguments_of(self.pipe, rows)
        noise = [torch.Generator("cpu").manual_seed(row.seed) for row in rows]
        self.use(plugins)
        started = time.monotonic()
        result = self.pipe(
            **arguments,
            generator=noise,
            num_inference_steps=rows[0].steps,
            output_type="np",
        )
        pictures = read_pictures(result)
        seconds = time.monotonic() - started
        if len(pictures) != len(rows):
            raise Incompatible(
                f"{type(self.pipe).__name__} made {len(pictures)} pictures of {len(rows)} prompts"
            )
        fraction = self.pipe.plugin_report().fraction if plugins != "[]" else 1.0
        return Called(pictures, seconds, fraction)


def quiet_pipeline(pipe: Any) -> Any:
    """Hide a pipeline's own progress bar.

    Raises Incompatible for pipelines that take class numbers.
    """
    if prompt_parameter(pipe) != "prompt":
        raise Incompatible(
            f"{type(pipe).__name__} is told what to make by class numbers: batch takes prompts"
        )
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments_of(pipe: Any, rows: Sequence[Row]) -> dict[str, Any]:
    """Return what a call for rows of one group is given, besides seeds and steps.

    Raises Incompatible for fields that this pipeline does not take.
    """
    first = rows[0]
    arguments: dict[str, Any] = {"prompt": [row.prompt for row in rows]}
    if first.width is not None:
        arguments |= size_arguments(pipe, f"{first.width}x{first.height}")
    if first.frames is not None:
        arguments["num_frames"] = first.frames
    if first.guidance is not None:
        arguments["guidance_scale"] = first.guidance
    if first.negative is not None:
        arguments["negative_prompt"] = [row.negative for row in rows]
    parameters = inspect.signature(type(pipe).__call__).parameters
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        for name in arguments:
            if name not in parameters:
                raise Incompatible(f"{type(pipe).__name__} takes no {name}: leave it out")
    return arguments


def encode(
    picture: Float[Tensor, "1 f 3 height width"], described: dict[str, Any] | None, clips: str
) -> tuple[str, bytes]:
    """Return the ending and the bytes of a picture's file, or of a clip's."""
    frames = to_bytes(picture.transpose(0, 1))  # frame by frame
    if len(frames) > 1:
        return clips, clip_bytes(np.stack(frames), clips, described or {}, rate=FRAMES_PER_SECOND)
    texts = {} if described is None else {"parameters": parameters(described)}
    return "png", to_png(to_image(frames[0]), described, **texts)


def no_picture(row: Row, why: str) -> Made:
    """Return what is said of a picture that is none."""
    return Made(row, why, error=WORDS[why])
