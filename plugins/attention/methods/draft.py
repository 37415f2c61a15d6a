"""Draft Attention: a low-resolution attention map says where the full one is worth computing.

"DraftAttention: Fast Video Diffusion via Low-Resolution Attention Guidance", Shen et al. 2025
(arXiv:2505.14708). Every frame is average-pooled by patches of 8 x 16 tokens; the map of the pooled
queries and keys is cut at one threshold per head, so rows that need more get more. Fails on detail
finer than a patch.

    Q', K' = average of the tokens of each patch,   A' = softmax(Q' K'^T scale)
    keep the largest `keep` of ALL entries of A' of a head

Differs from the authors' code: a row that is left without any entry keeps its largest (theirs
becomes NaN); nothing has to divide; text is kept.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.block_pool import block_mean
from skipstep.kernels.permute import tile_order
from skipstep.plugins.attention.methods.base import Choice, Grid, Scene, Side, SparseAttention
from skipstep.plugins.attention.methods.selection import pooled_scores

__all__ = ["Draft", "largest_of_all"]


def largest_of_all(scores: Float[Tensor, "b h nq nk"], share: float) -> Bool[Tensor, "b h nq nk"]:
    """Keep the largest share of all entries of a head, and the largest of every row.

    >>> largest_of_all(torch.tensor([[[[0.9, 0.8], [0.2, 0.1]]]]), 0.5).tolist()
    [[[[True, True], [True, False]]]]
    """
    flat = scores.flatten(2)
    count = max(1, round(share * flat.shape[-1]))
    mask = torch.zeros_like(flat, dtype=torch.bool)
    mask.scatter_(-1, flat.topk(count, dim=-1).indices, True)
    mask = mask.view(scores.shape)
    return mask.scatter(-1, scores.argmax(-1, keepdim=True), True)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Draft(SparseAttention):
    """Keep the largest entries of a pooled attention map, head by head."""

    name: ClassVar[str] = "draft"
    summary: ClassVar[str] = "Sparse attention guided by a low-resolution map, one cut per head."
    paper: ClassVar[str] = (
        "DraftAttention: Fast Video Diffusion via Low-Resolution Attention Guidance "
        "(arXiv:2505.14708)"
    )
    default_keep: ClassVar[float | None] = 0.25

    tile: Annotated[
        tuple[Side, Side, Side], Field(description="Frames, rows and columns of a pooled patch.")
    ] = (1, 8, 16)

    def order(self, grid: Grid, device: torch.device) -> Int[Tensor, " n"] | None:
        """Return the tokens patch by patch."""
        return tile_order(*grid, self.tile, device=device)

    def choose(self, scene: Scene) -> Choice:
        """Return the entries above each head's cut."""
        q_mean = block_mean(scene.q, scene.block_q)
        k_mean = block_mean(scene.k, scene.block_k)
        scores = pooled_scores(q_mean, k_mean, scene.scale)
        return Choice(largest_of_all(scores, scene.keep or 1.0))
