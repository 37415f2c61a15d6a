"""NABLA: the blocks whose means hold the attention, and a window that is always there.

"NABLA: Neighborhood Adaptive Block-Level Attention", Mikhailov et al. 2025 (arXiv:2507.13546).
Tokens lie in tiles of 8 x 8 of a frame, so a block is a patch of the picture. Saves what the map of
block means leaves out; fails where a block's mean hides its tokens.

    P     = softmax(q_mean k_mean^T scale)
    mask  = the fewest blocks of each row that hold `mass` of P,  or  the window of sliding tiles

Differs from the authors' code: rows of P are cut from above instead of from below, which is the
same; the block that crosses the mass is kept; a share may be asked for instead; text is kept.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.block_pool import block_mean
from skipstep.kernels.permute import tile_order
from skipstep.plugins.attention.methods.base import Choice, Grid, Scene, Side, SparseAttention
from skipstep.plugins.attention.methods.geometry import (
    blocks_that_see,
    remembered,
    tile_counts,
    tile_ids,
    window_pairs,
)
from skipstep.plugins.attention.methods.selection import keep_best, pooled_scores

__all__ = ["Nabla"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Nabla(SparseAttention):
    """Keep what block means score high, and a window of tiles."""

    name: ClassVar[str] = "nabla"
    summary: ClassVar[str] = "Sparse attention by block means plus a window of tiles."
    paper: ClassVar[str] = "NABLA: Neighborhood Adaptive Block-Level Attention (arXiv:2507.13546)"
    takes_mass: ClassVar[bool] = True
    default_mass: ClassVar[float | None] = 0.9

    tile: Annotated[
        tuple[Side, Side, Side], Field(description="Frames, rows and columns of a tile.")
    ] = (1, 8, 8)
    window: Annotated[
        tuple[Side, Side, Side] | None,
        Field(description="Tiles along each axis that are always kept; None: no window."),
    ] = (3, 3, 3)

    def order(self, grid: Grid, device: torch.device) -> Int[Tensor, " n"] | None:
        """Return the tokens tile by tile."""
        return tile_order(*grid, self.tile, device=device)

    def choose(self, scene: Scene) -> Choice:
        """Return the blocks of high score and those of the window."""
        q_mean = block_mean(scene.q, scene.block_q)
        k_mean = block_mean(scene.k, scene.block_k)
        scores = pooled_scores(q_mean, k_mean, scene.scale)
        mask = keep_best(scores, scene.keep, scene.mass)
        if self.window is None:
            return Choice(mask)
        window = self.window

        def make() -> Tensor:
            counts = tile_counts(scene.grid, self.tile)
            sees = window_pairs(counts, window, scene.q.device)
            return blocks_that_see(scene, tile_ids(scene, self.tile), sees)

        return Choice(mask | remembered(scene, make))
