"""Watch a pipeline call step by step: stop it, and see the picture come.

diffusers gives two hooks, `callback_on_step_end` and the older `callback`; a pipeline with neither
runs to its end unseen. A preview costs nothing that matters: latents of a tiny autoencoder are
decoded, all others are mapped to colours by

    rgb = [latents, 1] W        W: least squares on the last picture that this pipeline finished

cell by cell; before the first picture there is none. Packed latents [b, cells, channels] are laid
out as rows of the picture's shape.
"""

import inspect
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from skipstep.pipelines.batch.stopping import Stop

__all__ = ["Previews", "call_arguments", "watched"]

SECONDS_BETWEEN = 0.25
SMALLEST, LARGEST = 64, 512


def call_arguments(pipeline: type) -> set[str]:
    """Return the names that a pipeline's call takes; those of its bases too, if it passes on."""
    names: set[str] = set()
    for cls in pipeline.__mro__:
        if "__call__" in vars(cls):
            parameters = inspect.signature(cls.__call__).parameters.values()
            names |= {each.name for each in parameters if each.kind is not each.VAR_KEYWORD}
            if all(each.kind is not each.VAR_KEYWORD for each in parameters):
                break
    return names


def watched(pipe: Any, stop: Stop, see: Callable[[int, Tensor | None], None]) -> dict[str, Any]:
    """Return the arguments with which a call is watched.

    Args:
        stop: asked before every step; the call then raises Stopped.
        see: called with the steps done and the latents, None where the pipeline shows none.
    """
    names = call_arguments(type(pipe))

    def on_step_end(_: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        stop.check()
        see(step + 1, values.get("latents"))
        return {}

    def on_step(step: int, timestep: Any, latents: Tensor) -> None:
        stop.check()
        see(step + 1, latents)

    if "callback_on_step_end" in names:
        return {"callback_on_step_end": on_step_end}
    if "callback" in names:
        return {"callback": on_step, "callback_steps": 1}
    return {}


@dataclass
class Previews:
    """Turn latents of one pipeline into small pictures, at most four a second."""

    pipe: Any
    weights: Float[Tensor, "c 3"] | None = None
    last: Tensor | None = None
    shown: float = -math.inf

    def picture(
        self, latents: Tensor | None, width: int | None, height: int | None
    ) -> NDArray[np.uint8] | None:
        """Return a picture [height, width, 3] of the first sample, or None if none is due.

        Of the latents of a clip the middle frame is taken.
        """
        if latents is not None and latents.ndim == 5:
            latents = latents[:, :, latents.shape[2] // 2]
        self.last = latents
        now = time.monotonic()
        if latents is None or now - self.shown < SECONDS_BETWEEN:
            return None
        self.shown = now
        decoded = self.decode(latents)
        if decoded is None:
            decoded = self.map_colours(latents, width, height)
        return None if decoded is None else to_preview(decoded)

    def decode(self, latents: Tensor) -> Float[Tensor, "3 height width"] | None:
        """Decode with a tiny autoencoder, where the pipeline has one."""
        from diffusers import AutoencoderTiny

        vae = getattr(self.pipe, "vae", None)
        if not isinstance(vae, AutoencoderTiny) or latents.ndim != 4:
            return None
        with torch.no_grad():
            decoded = vae.decode(latents[:1] / vae.config.scaling_factor, return_dict=False)[0]
        picture: Tensor = decoded[0].float().cpu()
        return picture

    def map_colours(
        self, latents: Tensor, width: int | None, height: int | None
    ) -> Float[Tensor, "3 height width"] | None:
        """Map latents to colours by what was learned."""
        cells, shape = as_cells(latents), grid(latents, width, height)
        if self.weights is None or cells is None or shape is None:
            return None
        if cells.shape[1] + 1 != self.weights.shape[0]:
            return None
        return (with_one(cells) @ self.weights).T.reshape(3, *shape)

    def learn(self, picture: Float[Tensor, "3 height width"]) -> None:
        """Fit the colours to a finished picture in [-1, 1] and the last latents that were seen."""
        latents, self.last = self.last, None
        cells = None if latents is None else as_cells(latents)
        if latents is None or cells is None:
            return
        shape = grid(latents, picture.shape[2], picture.shape[1])
        if shape is None:
            return
        small = torch.nn.functional.adaptive_avg_pool2d(picture[None].float(), shape)[0]
        self.weights = torch.linalg.lstsq(with_one(cells), small.flatten(1).T).solution


def with_one(cells: Float[Tensor, "n c"]) -> Float[Tensor, "n c1"]:
    """Return the cells with a column of ones, which carries the constant."""
    return torch.cat([cells, torch.ones(len(cells), 1)], dim=1)


def as_cells(latents: Tensor) -> Float[Tensor, "n c"] | None:
    """Return the first sample's latents as one row a cell; None for those that are no picture."""
    first = latents[0].detach().float().cpu()
    if latents.ndim == 4:
        return first.flatten(1).T
    return first if latents.ndim == 3 else None


def grid(latents: Tensor, width: int | None, height: int | None) -> tuple[int, int] | None:
    """Return rows and columns of cells."""
    if latents.ndim == 4:
        return int(latents.shape[2]), int(latents.shape[3])
    return grid_of(int(latents.shape[1]), width or 1, height or 1)


def grid_of(count: int, width: int, height: int) -> tuple[int, int] | None:
    """Return rows and columns of `count` cells of a picture's shape, if they fill it.

    >>> grid_of(24, 600, 400), grid_of(25, 600, 400)
    ((4, 6), None)
    """
    rows = round(math.sqrt(count * height / width))
    return (rows, count // rows) if rows and count % rows == 0 else None


def to_preview(picture: Float[Tensor, "3 height width"]) -> NDArray[np.uint8]:
    """Return an 8-bit picture of a handy size."""
    longest = max(picture.shape[1:])
    if longest < SMALLEST:
        times = math.ceil(SMALLEST / longest)
        picture = picture.repeat_interleave(times, 1).repeat_interleave(times, 2)
    elif longest > LARGEST:
        step = math.ceil(longest / LARGEST)
        picture = picture[:, ::step, ::step]
    values = ((picture.nan_to_num(0.0) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return np.ascontiguousarray(values.movedim(0, -1).numpy())
