"""Static masks: from what tokens are near to what blocks are.

Tokens fall into groups (tiles, pieces of frames), a rule says which groups see which, and a block
keeps what any of its tokens needs. In matrices, with M the 0/1 table of blocks and their groups:

    mask = M_q A M_k^T > 0
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skipstep.plugins.attention.methods.base import Grid, Scene

__all__ = ["blocks_that_see", "members", "remembered", "tile_counts", "tile_ids", "window_pairs"]


def members(ids: Int[Tensor, " n"], block: int, groups: int) -> Float[Tensor, "blocks groups"]:
    """Return which groups the tokens of each block belong to, as 0 and 1; -1 is no group.

    >>> members(torch.tensor([0, 0, 1, -1]), 2, 2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    blocks = -(-ids.shape[0] // block)
    table = torch.zeros(blocks, groups + 1, device=ids.device)
    rows = torch.arange(ids.shape[0], device=ids.device) // block
    table[rows, ids.where(ids >= 0, groups)] = 1.0
    return table[:, :groups]


def blocks_that_see(
    scene: Scene, ids: Int[Tensor, " n"], sees: Bool[Tensor, "groups groups"]
) -> Bool[Tensor, "1 1 nq nk"]:
    """Return the pairs of blocks of which any two tokens are in groups that see each other."""
    groups = sees.shape[0]
    q, k = (members(ids, block, groups) for block in (scene.block_q, scene.block_k))
    return (q @ sees.float() @ k.T > 0)[None, None]


def remembered(scene: Scene, make: Callable[[], Any]) -> Any:
    """Make what depends on the layout alone once per run and layer."""
    key = f"static {scene.places.shape[0]} {scene.grid}"
    if key not in scene.memory:
        scene.memory[key] = make()
    return scene.memory[key]


def tile_counts(grid: Grid, tile: Grid) -> Grid:
    """Return how many tiles there are along each axis, the last one perhaps short."""
    frames, rows, columns = (-(-size // side) for size, side in zip(grid, tile, strict=True))
    return frames, rows, columns


def tile_ids(scene: Scene, tile: Grid) -> Int[Tensor, " n"]:
    """Return the number of the tile that each slot's token lies in; -1 for text."""
    _, rows, columns = tile_counts(scene.grid, tile)
    t, y, x = (scene.coordinates() // torch.tensor(tile, device=scene.places.device)).unbind(-1)
    return ((t * rows + y) * columns + x).where(scene.places >= 0, -1)


def window_pairs(counts: Grid, window: Grid, device: torch.device) -> Bool[Tensor, "g g"]:
    """Return which tiles lie in the window around each tile; at the border the window is moved
    inwards, so every tile sees as many.
    """
    seen = torch.ones(1, 1, dtype=torch.bool, device=device)
    for count, width in zip(counts, window, strict=True):
        width = min(width, count)
        at = torch.arange(count, device=device)
        start = (at - width // 2).clamp(0, count - width)[:, None]
        axis = (at >= start) & (at < start + width)
        size = seen.shape[0] * count
        seen = (seen[:, None, :, None] & axis[None, :, None, :]).reshape(size, size)
    return seen
