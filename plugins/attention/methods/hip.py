"""HiP: look for the best keys as in a tree, halving what is left at every level.

"A Training-free Sub-quadratic Cost Transformer Model Serving Framework With Hierarchically Pruned
Attention", Lee et al. 2025 (arXiv:2406.09827). Keys are cut in coarse chunks; each is judged by its
first and last key alone, the best are kept and split, down to single blocks. Estimating costs
n log n. Made for text, where neighbouring keys are alike; fails where a chunk hides one good key.

    level l = L, ..., 0:  chunks of 2^l key blocks
    score(i, c) = max(q_i . k_first(c), q_i . k_last(c)),   q_i the mean of query block i
    keep, of the halves of what the level before kept, the best `keep` (twice that before the last)

Differs from the authors' code: a chunk ends at a block of the kernel; twice the budget is kept on
the way (theirs has a budget per level); no sink and no sliding window; text is kept.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.block_pool import block_mean
from skipstep.plugins.attention.methods.base import Choice, Scene, SparseAttention

__all__ = ["HiP"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class HiP(SparseAttention):
    """Find the best key blocks of every query block in a tree."""

    name: ClassVar[str] = "hip"
    summary: ClassVar[str] = "Sparse attention by a tree search over chunks of keys."
    paper: ClassVar[str] = (
        "A Training-free Sub-quadratic Cost Transformer Model Serving Framework With "
        "Hierarchically Pruned Attention (arXiv:2406.09827)"
    )
    default_keep: ClassVar[float | None] = 0.25

    levels: Annotated[
        int, Field(ge=0, le=12, description="Halvings from the coarsest chunk to one key block.")
    ] = 3

    def choose(self, scene: Scene) -> Choice:
        """Return the blocks that the search ends at."""
        q = block_mean(scene.q, scene.block_q)
        wanted = max(1, round((scene.keep or 1.0) * scene.nk))
        width = 2**self.levels
        kept = torch.ones(*q.shape[:3], scene.nk, dtype=torch.bool, device=q.device)
        while width >= 1:
            scores = self._scores(scene, q, width)
            # At the coarsest level, which is no half of anything, all are alive.
            alive = kept.repeat_interleave(2, dim=-1)[..., : scores.shape[-1]]
            scores = scores.masked_fill(~alive, -torch.inf)
            # Chunks that hold the wanted blocks, twice over while they are coarse.
            count = wanted if width == 1 else -(-2 * wanted // width)
            best = scores.topk(min(count, scores.shape[-1]), dim=-1)
            kept = torch.zeros_like(scores, dtype=torch.bool)
            kept.scatter_(-1, best.indices, best.values > -torch.inf)
            width //= 2
        return Choice(kept)

    def _scores(
        self, scene: Scene, q: Float[Tensor, "b h nq d"], width: int
    ) -> Float[Tensor, "b h nq chunks"]:
        """Judge chunks of `width` blocks by their first and last key."""
        n, size = scene.k.shape[2], width * scene.block_k
        first = torch.arange(0, n, size, device=q.device)
        last = (first + size - 1).clamp_max(n - 1)
        ends = [q @ scene.k[:, :, places].to(q.dtype).mT for places in (first, last)]
        return torch.maximum(*ends)
