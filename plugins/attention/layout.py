"""Where in an attention call the picture's tokens lie, found from the denoiser's call.

The grid of tokens comes from the first of these that is there: what the user gave; `img_shapes`
(Qwen-Image); `img_ids`, the tokens' positions (FLUX); `num_frames`, `height` and `width` beside
packed tokens (LTX-Video); the shape of the noisy picture divided by the model's patch size. A call
with more tokens than the grid has text before or after the picture; a call with fewer may be a
coarser level of a UNet, or one frame at a time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipstep.plugins.attention.methods.base import Grid

__all__ = ["Layout", "find_grid", "grid_for", "main_input"]


@dataclass(frozen=True)
class Layout:
    """Say how the tokens of one attention call lie: the picture's grid, and text beside it."""

    grid: Grid
    text: int = 0
    text_first: bool = False

    @property
    def picture(self) -> int:
        """Number of tokens of the picture."""
        return math.prod(self.grid)

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return self.picture + self.text


def find_grid(named: Mapping[str, Any], config: Mapping[str, Any]) -> Grid | None:
    """Return the token grid of a denoiser call, or None where its arguments do not tell.

    Args:
        named: the call's arguments by name, in the order of the denoiser's parameters.
        config: the denoiser's configuration; its patch size counts.
    """
    main = main_input(named)
    if isinstance(main, list):
        main = main[0][None]
    if not isinstance(main, Tensor):
        return None
    if main.ndim == 3:
        return _packed_grid(named, main.shape[1])
    frames, rows, columns = _picture_sides(main.shape, config)
    patch = _patch(config)
    sides = frames // patch[0], rows // patch[1], columns // patch[2]
    return sides if min(sides) else None


def main_input(named: Mapping[str, Any]) -> Tensor | list[Tensor] | None:
    """Return the first argument of a denoiser call that is a batch: the noisy picture."""
    return next((value for value in named.values() if _is_batch(value)), None)


def grid_for(tokens: int, grid: Grid, has_levels: bool) -> Grid | None:
    """Return the grid of a call with so many picture tokens: the whole one, one frame of it, or a
    coarser level where the denoiser has levels.

    >>> grid_for(12, (3, 4, 4), False), grid_for(16, (3, 4, 4), False), grid_for(4, (1, 4, 4), True)
    (None, (1, 4, 4), (1, 2, 2))
    """
    frames, rows, columns = grid
    if tokens == frames * rows * columns:
        return grid
    if tokens == rows * columns:
        return 1, rows, columns
    while has_levels and rows > 1 and columns > 1:
        rows, columns = -(-rows // 2), -(-columns // 2)
        if tokens in (rows * columns, frames * rows * columns):
            return tokens // (rows * columns), rows, columns
    return None


def _is_batch(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], Tensor) and value[0].ndim >= 3
    return isinstance(value, Tensor) and value.ndim >= 3


def _picture_sides(shape: torch.Size, config: Mapping[str, Any]) -> Grid:
    """Return frames, rows and columns of [b, c, h, w], [b, c, f, h, w] or [b, f, c, h, w]."""
    rows, columns = shape[-2:]
    if len(shape) == 4:
        return 1, rows, columns
    is_channels_second = shape[2] == config.get("in_channels") != shape[1]
    return shape[1] if is_channels_second else shape[2], rows, columns


def _patch(config: Mapping[str, Any]) -> Grid:
    """Return the patch's sides; a model without patches takes every pixel as a token."""
    sizes = config.get("patch_size") or config.get("all_patch_size") or 1
    frames = config.get("patch_size_t") or (config.get("all_f_patch_size") or (1,))[0]
    if isinstance(sizes, int):
        return int(frames), sizes, sizes
    if len(sizes) == 3:
        return int(sizes[0]), int(sizes[1]), int(sizes[2])
    return int(frames), int(sizes[0]), int(sizes[-1])


def _packed_grid(named: Mapping[str, Any], tokens: int) -> Grid | None:
    """Return the grid of tokens that come already packed, [b, tokens, c]."""
    found = [
        _from_shapes(named.get("img_shapes")),
        _from_ids(named.get("img_ids")),
        _from_numbers(named.get("num_frames"), named.get("height"), named.get("width")),
    ]
    return next((grid for grid in found if grid and math.prod(grid) == tokens), None)


def _from_shapes(shapes: Any) -> Grid | None:
    while isinstance(shapes, Sequence) and len(shapes) and isinstance(shapes[0], Sequence):
        if isinstance(shapes[0][0], Sequence) and len(shapes[0]) > 1:
            return None  # several pictures in one sequence
        shapes = shapes[0]
    if not isinstance(shapes, Sequence) or len(shapes) != 3:
        return None
    return int(shapes[0]), int(shapes[1]), int(shapes[2])


def _from_ids(ids: Any) -> Grid | None:
    if not isinstance(ids, Tensor) or ids.ndim not in (2, 3):
        return None
    first = ids if ids.ndim == 2 else ids[0]
    sides = [int(side) for side in (first.amax(0) - first.amin(0) + 1).tolist()]
    sides = [side for side in sides if side > 1]
    if len(sides) > 3:
        return None
    padded = [1] * (3 - len(sides)) + sides
    return padded[0], padded[1], padded[2]


def _from_numbers(*sides: Any) -> Grid | None:
    if not all(isinstance(side, int) for side in sides):
        return None
    return int(sides[0]), int(sides[1]), int(sides[2])
