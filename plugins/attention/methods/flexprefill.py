"""FlexPrefill: trust the map of block means where a test says so, else look for lines.

"FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence Inference", Lai
et al. 2025 (arXiv:2502.20766). For every head the attention of a block of queries is computed
exactly and compared with the one that block means predict. Made for text; the test is worth having
for pictures too, since it catches heads whose means say nothing.

    a_true, a_mean   attention of the probed queries over key blocks: exact, and by means
    D = sqrt(Jensen-Shannon divergence of the two)
    D < tau          query-aware: of ALL entries of the map by means, the fewest that hold gamma
    else             vertical-slash: the fewest columns and diagonals that hold gamma each

Differs from the authors' code: attention is not causal, so the probed block is in the middle; the
probed queries of the lines are spread over all tokens; the entry that crosses gamma is kept; under
`keep` both shapes keep that share instead; text is kept.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Bool, Float
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.block_pool import block_mean
from skipstep.plugins.attention.methods.base import Choice, Scene, SparseAttention
from skipstep.plugins.attention.methods.draft import largest_of_all
from skipstep.plugins.attention.methods.minference import diagonals, slash_sums, vertical_slash
from skipstep.plugins.attention.methods.probing import attention_of, block_sums, probe_places
from skipstep.plugins.attention.methods.selection import pooled_scores, top_mass

__all__ = ["FlexPrefill", "jensen_shannon"]


def jensen_shannon(p: Float[Tensor, "*b n"], q: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """Return the Jensen-Shannon divergence of distributions over the last axis, in nats: 0 where
    they are equal, log 2 where they are apart.

    >>> one, other = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    >>> round(float(jensen_shannon(one, other)), 4), float(jensen_shannon(one, one))
    (0.6931, 0.0)
    """
    middle = (p + q) / 2
    gains = [torch.xlogy(x, x / middle.clamp_min(1e-30)).sum(-1) for x in (p, q)]
    return (gains[0] + gains[1]) / 2


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class FlexPrefill(SparseAttention):
    """Choose blocks by means where these are right, else by columns and diagonals."""

    name: ClassVar[str] = "flexprefill"
    summary: ClassVar[str] = "Sparse attention by block means, or lines where the means mislead."
    paper: ClassVar[str] = (
        "FlexPrefill: A Context-Aware Sparse Attention Mechanism for Efficient Long-Sequence "
        "Inference (arXiv:2502.20766)"
    )
    takes_mass: ClassVar[bool] = True
    default_mass: ClassVar[float | None] = 0.95

    tau: Annotated[
        float, Field(ge=0, le=1, description="Largest distance at which means are trusted.")
    ] = 0.1
    rows: Annotated[
        int, Field(ge=1, le=1024, description="Exact queries that lines are found by.")
    ] = 64

    def choose(self, scene: Scene) -> Choice:
        """Return blocks by means or lines, head by head."""
        q_mean = block_mean(scene.q, scene.block_q)
        k_mean = block_mean(scene.k, scene.block_k)
        scores = pooled_scores(q_mean, k_mean, scene.scale)
        middle = scene.nq // 2
        probe = torch.arange(
            middle * scene.block_q,
            min((middle + 1) * scene.block_q, scene.q.shape[2]),
            device=scene.q.device,
        )
        true = block_sums(attention_of(scene, probe), scene.block_k).mean(2)
        is_right = jensen_shannon(true, scores[:, :, middle]).clamp_min(0).sqrt() < self.tau
        by_means = (
            largest_of_all(scores, scene.keep)
            if scene.keep is not None
            else top_mass(scores.flatten(2)[:, :, None], scene.mass or 1.0).view(scores.shape)
        )
        return Choice(torch.where(is_right[..., None, None], by_means, self._lines(scene)))

    def _lines(self, scene: Scene) -> Bool[Tensor, "b h nq nk"]:
        """Return columns and diagonals: the share that is asked for, or those that hold gamma."""
        rows = probe_places(scene.q.shape[2], self.rows, scene.q.device)
        sums = block_sums(attention_of(scene, rows), scene.block_k)
        if scene.keep is not None:
            return vertical_slash(scene, sums, rows, scene.keep)
        gamma = scene.mass or 1.0
        vertical = top_mass(sums.sum(2, keepdim=True), gamma)
        slash = top_mass(slash_sums(scene, sums, rows)[:, :, None], gamma)[:, :, 0]
        return vertical | slash[..., diagonals(scene)]
