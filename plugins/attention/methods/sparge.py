"""SpargeAttention: attend where the means of blocks agree, and wherever a mean says little.

"SpargeAttention: Accurate and Training-free Sparse Attention Accelerating Any Model Inference",
Zhang et al. 2025 (arXiv:2502.18137). Saves what is left out of the attention map; fails where many
small scores add up, and on blocks of unlike tokens, which it therefore keeps.

    q_i, k_j      means of the tokens of query block i and key block j (k with its mean over all
                  tokens taken off, which softmax does not see)
    s_i           mean cosine similarity of all pairs of tokens of block i
    P_ij          softmax_j(q_i . k_j scale), over those j with s_j > theta
    keep (i, j)   where P_ij is among the largest of its row by share or by mass,
                  or s_i <= theta, or s_j <= theta

Differs from the authors' code: the block that crosses the mass is kept (theirs stops short of it);
a row whose keys are all unlike keeps them all instead of becoming NaN; there is no second stage
that drops weak tiles inside the kernel; text is kept.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from pydantic import ConfigDict, Field

from skipstep.kernels.block_pool import block_stats
from skipstep.plugins.attention.methods.base import Choice, Scene, SparseAttention
from skipstep.plugins.attention.methods.selection import keep_best

__all__ = ["Sparge"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Sparge(SparseAttention):
    """Keep blocks whose means score high, and blocks of unlike tokens."""

    name: ClassVar[str] = "sparge"
    summary: ClassVar[str] = "Sparse attention by block means; unlike blocks stay dense."
    paper: ClassVar[str] = (
        "SpargeAttention: Accurate and Training-free Sparse Attention Accelerating Any Model "
        "Inference (arXiv:2502.18137)"
    )
    takes_mass: ClassVar[bool] = True
    default_keep: ClassVar[float | None] = 0.5

    similarity: Annotated[
        float,
        Field(ge=-1, le=1, description="theta: blocks whose tokens are less alike stay dense."),
    ] = -0.1

    def choose(self, scene: Scene) -> Choice:
        """Return the blocks of high score, and the rows and columns of unlike blocks."""
        q = block_stats(scene.q, scene.block_q)
        k = block_stats(scene.k, scene.block_k)
        k_mean = k.mean - scene.k.mean(2, keepdim=True)
        is_alike_q, is_alike_k = q.similarity > self.similarity, k.similarity > self.similarity
        logits = q.mean @ k_mean.mT * scene.scale
        scores = torch.softmax(logits.masked_fill(~is_alike_k[:, :, None], -torch.inf), -1)
        # A row of unlike keys alone has no scores; its keys are all kept below.
        mask = keep_best(scores.nan_to_num(0), scene.keep, scene.mass)
        return Choice(mask | ~is_alike_q[..., None] | ~is_alike_k[:, :, None])
