"""Sparse VideoGen: every head is either about one frame or about one place; find out which.

"Sparse VideoGen: Accelerating Video Diffusion Transformers with Spatial-Temporal Sparsity", Xi et
al. 2025 (arXiv:2502.01776). Spatial heads attend near themselves in the order frame, row, column;
temporal heads attend near themselves once tokens are ordered by place first. Both are one band; per
call and head, a few exact queries say which loses less. Fails where a head is neither.

    spatial    |i - j| < w in raster order, and the first frame
    temporal   |i' - j'| < w with i' the token's number in the order (row, column, frame)
    w          = n (1 - sqrt(1 - keep)),  which makes a band of n x n hold `keep` of it
    choose     the pattern of smaller MSE against exact outputs of the probed queries

Differs from the authors' code: probed queries are evenly spaced instead of random; `keep` is called
what it is (theirs calls the density "sparsity"); text is kept.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Bool, Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.kernels.permute import frame_minor_order, inverse_order
from skipstep.plugins.attention.methods.base import Choice, Scene, SparseAttention, any_in_block
from skipstep.plugins.attention.methods.probing import attention_of, probe_places

__all__ = ["SVG1", "band"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SVG1(SparseAttention):
    """Give every head a band, in the order of space or in that of time."""

    name: ClassVar[str] = "svg1"
    summary: ClassVar[str] = "Sparse video attention: each head spatial or temporal, found online."
    paper: ClassVar[str] = (
        "Sparse VideoGen: Accelerating Video Diffusion Transformers with Spatial-Temporal "
        "Sparsity (arXiv:2502.01776)"
    )
    needs_frames: ClassVar[bool] = True
    moves_tokens: ClassVar[bool] = True
    default_keep: ClassVar[float | None] = 0.3

    rows: Annotated[
        int, Field(ge=1, le=1024, description="Queries per call that choose the heads' patterns.")
    ] = 32

    def choose(self, scene: Scene) -> Choice:
        """Return the better band of every head, and the order it needs."""
        n, picture = scene.q.shape[2], int((~scene.is_text).sum())
        width = max(1.0, picture * (1 - (1 - (scene.keep or 1.0)) ** 0.5))
        minor = frame_minor_order(*scene.grid, device=scene.q.device)
        behind = torch.arange(picture, n, device=minor.device)
        to_time = torch.cat([minor, behind])
        in_raster = torch.arange(n, device=minor.device)
        is_temporal = self._loses_less_in_time(scene, width, inverse_order(to_time, n))
        first = any_in_block(scene.coordinates()[:, 0] == 0, scene.block_k)
        banded = band(scene, width)
        mask = torch.where(is_temporal[..., None, None], banded, banded | first)
        order = torch.where(is_temporal[..., None], to_time, in_raster)
        return Choice(mask, q_order=order, k_order=order)

    def _loses_less_in_time(
        self, scene: Scene, width: float, in_time: Int[Tensor, " n"]
    ) -> Bool[Tensor, "b h"]:
        """Compare both patterns on exact queries."""
        n = scene.q.shape[2]
        rows = probe_places(int((~scene.is_text).sum()), self.rows, scene.q.device)
        attention = attention_of(scene, rows)
        raster = torch.arange(n, device=rows.device)
        is_near = (raster[rows, None] - raster).abs() < width
        spatial = is_near | (scene.coordinates()[:, 0] == 0) | scene.is_text
        temporal = ((in_time[rows, None] - in_time).abs() < width) | scene.is_text
        exact = attention @ scene.v.float()
        lost = [
            (_renormalised(attention, kept) @ scene.v.float() - exact).square().mean((-1, -2))
            for kept in (spatial, temporal)
        ]
        return lost[1] < lost[0]


def band(scene: Scene, width: float) -> Bool[Tensor, "1 1 nq nk"]:
    """Return the pairs of blocks that hold tokens less than `width` slots apart."""
    start_q = torch.arange(scene.nq, device=scene.q.device)[:, None] * scene.block_q
    start_k = torch.arange(scene.nk, device=scene.q.device) * scene.block_k
    apart = (start_k - (start_q + scene.block_q - 1)).maximum(
        start_q - (start_k + scene.block_k - 1)
    )
    return (apart < width)[None, None]


def _renormalised(
    attention: Float[Tensor, "b h r n"], kept: Bool[Tensor, "r n"]
) -> Float[Tensor, "b h r n"]:
    left = attention.where(kept, 0)
    return left / left.sum(-1, keepdim=True)
