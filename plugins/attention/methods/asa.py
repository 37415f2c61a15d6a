"""Adaptive Sparse Attention of Video-BLADE: a few sampled tokens of each block decide.

"Video-BLADE: Block-Sparse Attention Meets Step Distillation for Efficient Video Generation", Gu et
al. 2025 (arXiv:2508.10774). Tokens follow a space-filling curve, so blocks are compact. Sampled
tokens find a sharp peak that a block's mean would hide; fails on peaks between the samples.

    A         softmax of k sampled tokens of every query block and key block
    score     the maximum of each k x k cell of A, each row normalised to sum 1
    mask      the fewest blocks of a row that hold `mass`, at least min_keep and at most max_keep
    pooled:   o = merge(sparse (o, lse), means of all key blocks (o', lse' + log g)),  g = block_k

The pooled branch (ASA_GT) covers kept blocks as well, so these count twice.

Differs from the paper, whose code is not public: the samples are evenly spaced; how cells are
pooled is told second-hand; text is kept.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.block_scores import sampled_scores
from skipstep.kernels.permute import gilbert_order
from skipstep.plugins.attention.methods.base import Choice, Grid, Scene, Share, SparseAttention
from skipstep.plugins.attention.methods.selection import keep_best, top_share

__all__ = ["ASA"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ASA(SparseAttention):
    """Keep the blocks whose sampled tokens hold the mass."""

    name: ClassVar[str] = "asa"
    summary: ClassVar[str] = (
        "Sparse attention by sampled tokens, blocks along a space-filling curve."
    )
    paper: ClassVar[str] = (
        "Video-BLADE: Block-Sparse Attention Meets Step Distillation for Efficient Video "
        "Generation (arXiv:2508.10774)"
    )
    takes_mass: ClassVar[bool] = True
    default_mass: ClassVar[float | None] = 0.95

    samples: Annotated[
        int, Field(ge=1, le=128, description="k: sampled tokens per block; at most its tokens.")
    ] = 16
    min_keep: Annotated[Share, Field(description="Smallest share of a row under mass.")] = 0.05
    max_keep: Annotated[Share, Field(description="Largest share of a row under mass.")] = 0.7
    pooled: Annotated[
        bool, Field(description="Let the means of all key blocks take part (ASA_GT).")
    ] = False

    def order(self, grid: Grid, device: torch.device) -> Int[Tensor, " n"] | None:
        """Return the tokens along a space-filling curve."""
        return gilbert_order(*grid, device=device)

    def choose(self, scene: Scene) -> Choice:
        """Return the blocks that hold the mass, within the two limits."""
        scores = sampled_scores(
            scene.q,
            scene.k,
            count=min(self.samples, scene.block_q, scene.block_k),
            block_q=scene.block_q,
            block_k=scene.block_k,
            scale=scene.scale,
        )
        mask = keep_best(scores, scene.keep, scene.mass)
        if scene.mass is not None:
            mask = (mask & top_share(scores, self.max_keep)) | top_share(scores, self.min_keep)
        return Choice(mask, is_pooled=self.pooled)
