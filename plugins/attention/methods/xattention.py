"""XAttention: score blocks by sums along their antidiagonals.

"XAttention: Block Sparse Attention with Antidiagonal Scoring", Xu et al. 2025 (arXiv:2503.16428).
Every vertical and every slash line of attention crosses the antidiagonals of a block, so strided
sums along them find both; estimating costs 1/S of the attention map. Fails where attention is
spread evenly, when nothing can be left out at the mass that is asked for.

    K' = [K_0, K_1, ..., K_(S-1)]   every S-th token from token i on, side by side (width S d)
    Q' = [Q_(S-1), ..., Q_1, Q_0]
    A  = softmax(Q' K'^T / (S sqrt(d)))
    score(i, j) = sum of A over the cells of block pair (i, j)
    keep the fewest blocks of a row whose scores sum to tau of it

Differs from the authors' code: no causal mask, no forced first block; the block that crosses tau is
kept; a share of the blocks may be asked for instead of tau; text is kept.
"""

from typing import Annotated, ClassVar

import pydantic
from pydantic import ConfigDict, Field

from skipstep.kernels.block_scores import antidiagonal_scores
from skipstep.plugins.attention.methods.base import Choice, Scene, SparseAttention
from skipstep.plugins.attention.methods.selection import keep_best

__all__ = ["XAttention"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class XAttention(SparseAttention):
    """Keep the blocks whose antidiagonals hold the mass."""

    name: ClassVar[str] = "xattention"
    summary: ClassVar[str] = "Sparse attention by sums along the antidiagonals of blocks."
    paper: ClassVar[str] = (
        "XAttention: Block Sparse Attention with Antidiagonal Scoring (arXiv:2503.16428)"
    )
    takes_mass: ClassVar[bool] = True
    default_mass: ClassVar[float | None] = 0.9

    stride: Annotated[
        int, Field(ge=1, le=64, description="S: estimating costs 1/S of attention.")
    ] = 8

    def __post_init__(self) -> None:
        """Refuse blocks that the stride does not divide."""
        SparseAttention.__post_init__(self)
        if self.block_q % self.stride or self.block_k % self.stride:
            raise ValueError(
                f"stride={self.stride} divides neither or only one of block_q={self.block_q} and "
                f"block_k={self.block_k}: it must divide both"
            )

    def choose(self, scene: Scene) -> Choice:
        """Return the blocks with the most attention along their antidiagonals."""
        scores = antidiagonal_scores(
            scene.q,
            scene.k,
            stride=self.stride,
            block_q=scene.block_q,
            block_k=scene.block_k,
            scale=scene.scale,
        )
        return Choice(keep_best(scores, scene.keep, scene.mass))
