"""Sparse VideoGen 2: put tokens that are alike together, then attend between groups.

"Sparse VideoGen2: Accelerate Video Generation with Sparse Attention via Semantic-Aware
Permutation", Yang et al. 2025 (arXiv:2505.18875). Queries and keys of every head are clustered by
k-means and sorted by cluster, so that a block holds like tokens, its mean says much, and what is
left out is really small. Fails when clusters go stale between steps, and costs the clustering.

    C_q, C_k   k-means of queries and of keys per head; warm-started from the step before
    tokens are sorted by cluster, then cut in blocks
    P = softmax(q_mean k_mean^T scale);  keep the fewest blocks of a row that hold `mass`,
        at least min_keep of them

Differs from the authors' code: blocks have a fixed size and may hold the end of one cluster and the
start of the next (theirs are clusters, of any size); any batch; text is kept.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.block_pool import block_mean
from skipstep.kernels.kmeans import kmeans, sorted_by_cluster
from skipstep.kernels.permute import gather_tokens
from skipstep.plugins.attention.methods.base import Choice, Scene, Share, SparseAttention
from skipstep.plugins.attention.methods.selection import keep_best, pooled_scores, top_share

__all__ = ["SVG2"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SVG2(SparseAttention):
    """Sort tokens by k-means clusters and keep the blocks that hold the mass."""

    name: ClassVar[str] = "svg2"
    summary: ClassVar[str] = "Sparse attention between clusters of like tokens (k-means per head)."
    paper: ClassVar[str] = (
        "Sparse VideoGen2: Accelerate Video Generation with Sparse Attention via Semantic-Aware "
        "Permutation (arXiv:2505.18875)"
    )
    takes_mass: ClassVar[bool] = True
    moves_tokens: ClassVar[bool] = True
    default_mass: ClassVar[float | None] = 0.9

    q_clusters: Annotated[int, Field(ge=1, description="Clusters of queries per head.")] = 300
    k_clusters: Annotated[int, Field(ge=1, description="Clusters of keys per head.")] = 1000
    first_iterations: Annotated[
        int, Field(ge=1, le=100, description="k-means iterations at a layer's first sparse step.")
    ] = 10
    iterations: Annotated[
        int, Field(ge=1, le=100, description="k-means iterations at every later step.")
    ] = 2
    min_keep: Annotated[Share, Field(description="Smallest share of a row under mass.")] = 0.1

    def choose(self, scene: Scene) -> Choice:
        """Return the orders by cluster, and the blocks to keep in them."""
        q_order = self._order(scene, "q", scene.q, self.q_clusters)
        k_order = self._order(scene, "k", scene.k, self.k_clusters)
        q_mean = block_mean(gather_tokens(scene.q, q_order), scene.block_q)
        k_mean = block_mean(gather_tokens(scene.k, k_order), scene.block_k)
        scores = pooled_scores(q_mean, k_mean, scene.scale)
        mask = keep_best(scores, scene.keep, scene.mass)
        if scene.mass is not None:
            mask = mask | top_share(scores, self.min_keep)
        return Choice(mask, q_order=q_order, k_order=k_order)

    def _order(
        self, scene: Scene, which: str, x: Float[Tensor, "b h n d"], clusters: int
    ) -> Int[Tensor, "b h n"]:
        """Cluster the picture's tokens, from where the step before left off, and sort them."""
        b, h, n, _ = x.shape
        picture = int((~scene.is_text).sum())
        tokens = x[:, :, :picture].flatten(0, 1)
        # With as many clusters as tokens there is nothing to gather.
        count = min(clusters, max(1, picture // 4))
        before: Tensor | None = scene.memory.get(which)
        if before is not None and before.shape[:2] != (b * h, count):
            before = None
        iterations = self.first_iterations if before is None else self.iterations
        found = kmeans(tokens, count, iterations=iterations, init=before)
        scene.memory[which] = found.centroids
        order = sorted_by_cluster(found.ids).reshape(b, h, -1).long()
        behind = torch.arange(picture, n, device=x.device).expand(b, h, -1)
        return torch.cat([order, behind], dim=-1)
