"""MMInference's grid heads: attention in strides becomes a band once tokens are sorted by phase.

"MMInference: Accelerating Pre-filling for Long-Context VLMs via Modality-Aware Permutation Sparse
Attention", Li et al. 2025 (arXiv:2504.16083). In pictures and videos some heads see every s-th
token: one row further down, one frame later. Sorted by i mod s those tokens lie together, and the
pattern is a band. Fails on heads that see neither a neighbourhood nor a stride.

    strides   s = 1 (near tokens), columns (one row on), rows x columns (one frame on)
    order_s   tokens by (i mod s, i // s)
    band_s    the blocks nearest to each block in order_s, `keep` of them
    choose    per head, the stride whose band holds most of a few exact queries' attention

Differs from the authors' code: strides come from the token grid instead of a search; heads at the
border of modalities are not treated apart, since text is kept.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.permute import inverse_order
from skipstep.plugins.attention.methods.base import Choice, Grid, Scene, SparseAttention
from skipstep.plugins.attention.methods.probing import attention_of, probe_places
from skipstep.plugins.attention.methods.selection import top_share

__all__ = ["GridPermutation", "phase_order", "strides_of"]


def strides_of(grid: Grid) -> list[int]:
    """Return the strides of a token grid, each once.

    >>> strides_of((3, 4, 5)), strides_of((1, 4, 5))
    ([1, 5, 20], [1, 5])
    """
    frames, rows, columns = grid
    strides = [1, columns if rows > 1 else 1, rows * columns if frames > 1 else 1]
    return list(dict.fromkeys(strides))


def phase_order(picture: int, n: int, stride: int, device: torch.device) -> Int[Tensor, " n"]:
    """Return the picture's slots by phase and then by period, with the text behind.

    >>> phase_order(6, 7, 3, torch.device("cpu")).tolist()
    [0, 3, 1, 4, 2, 5, 6]
    """
    slot = torch.arange(picture, device=device)
    order = (slot % stride * picture + slot // stride).argsort()
    return torch.cat([order, torch.arange(picture, n, device=device)])


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class GridPermutation(SparseAttention):
    """Give every head a band in the order of the stride that suits it."""

    name: ClassVar[str] = "mminference"
    summary: ClassVar[str] = "Sparse attention in strides of the grid, one stride per head."
    paper: ClassVar[str] = (
        "MMInference: Accelerating Pre-filling for Long-Context VLMs via Modality-Aware "
        "Permutation Sparse Attention (arXiv:2504.16083)"
    )
    moves_tokens: ClassVar[bool] = True
    default_keep: ClassVar[float | None] = 0.5

    rows: Annotated[
        int, Field(ge=1, le=1024, description="Exact queries that the strides are chosen by.")
    ] = 32

    def choose(self, scene: Scene) -> Choice:
        """Return the nearest blocks in the best order of every head."""
        n, picture = scene.q.shape[2], int((~scene.is_text).sum())
        rows = probe_places(picture, self.rows, scene.q.device)
        attention = attention_of(scene, rows)
        mask = self._band(scene)
        orders = torch.stack(
            [phase_order(picture, n, s, rows.device) for s in strides_of(scene.grid)]
        )
        held = []
        for order in orders:
            slot = inverse_order(order, n)
            kept = mask[0, 0][slot[rows] // scene.block_q][:, slot // scene.block_k]
            held.append(attention.where(kept | scene.is_text, 0).sum((-1, -2)))
        order = orders[torch.stack(held).argmax(0)]
        return Choice(mask, q_order=order, k_order=order)

    def _band(self, scene: Scene) -> Tensor:
        """Return the blocks nearest to the diagonal, `keep` of every row."""
        rows = torch.arange(scene.nq, device=scene.q.device)[:, None] + 0.5
        columns = torch.arange(scene.nk, device=scene.q.device) + 0.5
        distance = (columns * scene.block_k - rows * scene.block_q).abs()
        return top_share(-distance[None, None], scene.keep or 1.0)
