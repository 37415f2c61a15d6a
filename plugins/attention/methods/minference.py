"""MInference: three sparse shapes, and for every head the one that holds most of its attention.

"MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse Attention", Jiang
et al. 2024 (arXiv:2407.02490). Made for text, where heads are one of three shapes; of a video's
heads many are not, and it shows.

    A-shape          the first blocks, and a band around the diagonal
    vertical-slash   the key blocks, and the diagonals of blocks, that hold most of the attention of
                     a few exact queries, half the budget each
    block            the blocks whose means score highest

Differs from the authors' code: attention is not causal, so the probed queries are spread over all
tokens instead of being the last ones; the shape is chosen at every call by the attention it holds
(theirs is searched once, per head); slashes are diagonals of blocks; text is kept.
"""

from typing import Annotated, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.block_pool import block_mean
from skipstep.plugins.attention.methods.base import Choice, Scene, SparseAttention
from skipstep.plugins.attention.methods.probing import (
    attention_of,
    block_sums,
    held_by,
    probe_places,
)
from skipstep.plugins.attention.methods.selection import pooled_scores, top_share

__all__ = ["MInference", "a_shape", "diagonals", "slash_sums", "vertical_slash"]

Pattern = Literal["a_shape", "vertical_slash", "block"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class MInference(SparseAttention):
    """Give every head the shape that holds most of what a few exact queries attend to."""

    name: ClassVar[str] = "minference"
    summary: ClassVar[str] = "Sparse attention in one of three shapes, chosen per head."
    paper: ClassVar[str] = (
        "MInference 1.0: Accelerating Pre-filling for Long-Context LLMs via Dynamic Sparse "
        "Attention (arXiv:2407.02490)"
    )
    default_keep: ClassVar[float | None] = 0.5

    pattern: Annotated[
        Pattern | None, Field(description="One shape for all heads; None: the best of the three.")
    ] = None
    rows: Annotated[
        int, Field(ge=1, le=1024, description="Exact queries that the shapes are chosen by.")
    ] = 64

    def choose(self, scene: Scene) -> Choice:
        """Return the best shape of every head."""
        keep = scene.keep or 1.0
        rows = probe_places(scene.q.shape[2], self.rows, scene.q.device)
        sums = block_sums(attention_of(scene, rows), scene.block_k)
        masks: dict[Pattern, Tensor] = {}
        if self.pattern in (None, "a_shape"):
            masks["a_shape"] = a_shape(scene, keep)
        if self.pattern in (None, "vertical_slash"):
            masks["vertical_slash"] = vertical_slash(scene, sums, rows, keep)
        if self.pattern in (None, "block"):
            q_mean = block_mean(scene.q, scene.block_q)
            k_mean = block_mean(scene.k, scene.block_k)
            masks["block"] = top_share(pooled_scores(q_mean, k_mean, scene.scale), keep)
        shape = *sums.shape[:2], scene.nq, scene.nk
        held = torch.stack([held_by(m, sums, rows, scene.block_q) for m in masks.values()])
        stacked = torch.stack([mask.expand(shape) for mask in masks.values()])
        best = held.argmax(0)[None, ..., None, None].expand(1, *shape)
        return Choice(stacked.gather(0, best)[0])


def a_shape(scene: Scene, keep: float) -> Bool[Tensor, "1 1 nq nk"]:
    """Return the first key blocks, a quarter of the budget, and the nearest ones."""
    count = max(1, round(keep * scene.nk))
    sinks = min(max(1, count // 4), count)
    columns = torch.arange(scene.nk, device=scene.q.device)
    middle = (torch.arange(scene.nq, device=scene.q.device) + 0.5) * scene.block_q / scene.block_k
    distance = (columns + 0.5 - middle[:, None]).abs()
    distance = distance.masked_fill(columns < sinks, -1.0)
    return top_share(-distance[None, None], keep)


def vertical_slash(
    scene: Scene, sums: Float[Tensor, "b h r nk"], rows: Int[Tensor, " r"], keep: float
) -> Bool[Tensor, "b h nq nk"]:
    """Return the key blocks and the diagonals that hold most of the probed attention.

    The best columns take half the budget of a row; diagonals are added, best first, for the other.
    """
    slashes = slash_sums(scene, sums, rows)[..., diagonals(scene)]
    first = top_share(sums.sum(2, keepdim=True), keep / 2).expand(-1, -1, scene.nq, -1)
    # What the columns hold already comes first, so that the whole is `keep` of every row.
    return top_share(slashes.masked_fill(first, torch.inf), keep)


def slash_sums(
    scene: Scene, sums: Float[Tensor, "b h r nk"], rows: Int[Tensor, " r"]
) -> Float[Tensor, "b h slashes"]:
    """Return how much of the probed attention lies on each diagonal of blocks."""
    offset = diagonals(scene)[rows // scene.block_q].flatten()
    last = int(diagonals(scene).max())
    total = sums.new_zeros(*sums.shape[:2], last + 1)
    return total.scatter_add_(2, offset.expand(*sums.shape[:2], -1), sums.flatten(2))


def diagonals(scene: Scene) -> Int[Tensor, "nq nk"]:
    """Return on which diagonal each pair of blocks lies, counted from 0."""
    columns = torch.arange(scene.nk, device=scene.q.device)
    rows = torch.arange(scene.nq, device=scene.q.device) * scene.block_q // scene.block_k
    return columns - rows[:, None] + int(rows[-1])
