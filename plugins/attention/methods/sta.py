"""Sliding Tile Attention: every tile of the video sees the tiles in a window around it.

"Fast Video Generation with Sliding Tile Attention", Zhang et al. 2025 (arXiv:2502.04507). Tokens
are stored tile by tile, so a window of whole tiles is a mask of whole blocks. Saves all attention
outside the window; fails where far tokens matter, as in the first steps.

    tile(i)   = the tile of (frames, rows, columns) tokens that token i lies in
    i sees j  where |centre(tile(i)) - tile(j)| <= window / 2 along every axis,
              the centre moved inwards at the border, so that all see a whole window

Differs from the authors' code: one window for all heads, given or found from `keep` (theirs is
searched per head offline); any size of picture; where a tile is not a whole number of blocks, a
block keeps what any of its tokens needs; text is kept.
"""

import functools
import math
from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.permute import tile_order
from skipstep.plugins.attention.methods.base import Choice, Grid, Scene, Side, SparseAttention
from skipstep.plugins.attention.methods.geometry import (
    blocks_that_see,
    remembered,
    tile_counts,
    tile_ids,
    window_pairs,
)

__all__ = ["SlidingTile", "window_for"]


@functools.lru_cache(maxsize=64)
def window_for(counts: Grid, keep: float) -> Grid:
    """Return the window, in tiles, whose share of all tiles is nearest to `keep`; of several, the
    one that covers its axes most evenly.

    >>> window_for((3, 4, 4), 0.25), window_for((3, 4, 4), 1.0)
    ((2, 2, 3), (3, 4, 4))
    """
    windows = [
        (t, y, x)
        for t in range(1, counts[0] + 1)
        for y in range(1, counts[1] + 1)
        for x in range(1, counts[2] + 1)
    ]

    def cost(window: Grid) -> tuple[float, float]:
        shares = [width / count for width, count in zip(window, counts, strict=True)]
        return round(abs(math.prod(shares) - keep), 9), max(shares) - min(shares)

    return min(windows, key=cost)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SlidingTile(SparseAttention):
    """Keep the tiles in a window around each tile."""

    name: ClassVar[str] = "sta"
    summary: ClassVar[str] = "Sparse attention in a window of tiles around each tile."
    paper: ClassVar[str] = "Fast Video Generation with Sliding Tile Attention (arXiv:2502.04507)"
    default_keep: ClassVar[float | None] = 0.3

    tile: Annotated[
        tuple[Side, Side, Side], Field(description="Frames, rows and columns of a tile.")
    ] = (4, 8, 8)
    window: Annotated[
        tuple[Side, Side, Side] | None,
        Field(description="Tiles along each axis that a tile sees; None: the one nearest to keep."),
    ] = None

    def order(self, grid: Grid, device: torch.device) -> Int[Tensor, " n"] | None:
        """Return the tokens tile by tile."""
        return tile_order(*grid, self.tile, device=device)

    def choose(self, scene: Scene) -> Choice:
        """Return the blocks of the tiles in each window."""

        def make() -> Tensor:
            counts = tile_counts(scene.grid, self.tile)
            window = self.window or window_for(counts, scene.keep or 1.0)
            sees = window_pairs(counts, window, scene.q.device)
            return blocks_that_see(scene, tile_ids(scene, self.tile), sees)

        return Choice(remembered(scene, make))
