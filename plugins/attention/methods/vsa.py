"""Video Sparse Attention: cubes of tokens, and for every cube the cubes its mean looks at.

"VSA: Faster Video Diffusion with Trainable Sparse Attention", Zhang et al. 2025 (arXiv:2505.13389).
A coarse attention over cubes of 4 x 4 x 4 tokens picks, for every cube, the `keep` share of cubes
in which fine attention runs. Made to be trained; on a model that was not, it is a top-k by means.

    q_c, k_c, v_c   means over the valid tokens of cube c
    S = q_c k_c^T scale;   fine attention of cube c runs in the top-k cubes of row c of S
    out = gate * softmax(S) v_c + fine,   gate = 0 for a model that was not trained for it

Differs from the authors' code: the gate is 0; border cubes are cut off instead of padded, so a
block may hold the end of one cube and the start of the next; text is kept.
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
from skipstep.plugins.attention.methods.selection import pooled_scores, top_share

__all__ = ["VSA"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class VSA(SparseAttention):
    """Keep the cubes that a cube's mean scores highest."""

    name: ClassVar[str] = "vsa"
    summary: ClassVar[str] = "Sparse attention between cubes of tokens, the best per cube."
    paper: ClassVar[str] = (
        "VSA: Faster Video Diffusion with Trainable Sparse Attention (arXiv:2505.13389)"
    )
    default_keep: ClassVar[float | None] = 0.125

    block_q: Annotated[int, Field(ge=1, le=1024, description="Tokens of a query block.")] = 64
    tile: Annotated[
        tuple[Side, Side, Side], Field(description="Frames, rows and columns of a cube.")
    ] = (4, 4, 4)

    def order(self, grid: Grid, device: torch.device) -> Int[Tensor, " n"] | None:
        """Return the tokens cube by cube."""
        return tile_order(*grid, self.tile, device=device)

    def choose(self, scene: Scene) -> Choice:
        """Return the best cubes of every cube."""
        q_mean = block_mean(scene.q, scene.block_q)
        k_mean = block_mean(scene.k, scene.block_k)
        return Choice(top_share(pooled_scores(q_mean, k_mean, scene.scale), scene.keep or 1.0))
