"""Long-range grouped attention: every group sees a thinned-out copy of all views.

Yang et al. 2023, "Long-Range Grouping Transformer for Multi-View 3D Reconstruction"
(arXiv:2308.08724), LGA. The tokens of a view form a grid; group (i, j) takes those at rows
i, i + g, i + 2 g, ... and columns j, j + g, ... of EVERY view:
  (rows g) (columns g) of v views -> g^2 groups of v rows columns tokens
Attention stays inside of a group, which costs 1 / g^2 of all with all and still spans all views.

Differs from the authors' code: no inter-view signature (a depthwise convolution with weights of its
own) and no alternation with attention inside of a view: every second block attends to all instead,
so that neighbours in different groups meet.
"""

from typing import Annotated, Any, ClassVar

import pydantic
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.plugins.views.base import ViewPlugin

__all__ = ["LongRangeGroups", "grouped", "ungrouped"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class LongRangeGroups(ViewPlugin):
    """Attend inside of groups that span all views."""

    name: ClassVar[str] = "lga"
    summary: ClassVar[str] = "Attends inside of groups of tokens that span all views."
    paper: ClassVar[str] = "Long-Range Grouping Transformer (arXiv:2308.08724)"

    stride: Annotated[
        int, Field(ge=1, le=8, description="g: a group takes every g-th row and column.")
    ] = 2
    every: Annotated[
        int, Field(ge=1, description="Every so many blocks attend in groups; 1 is all of them.")
    ] = 2

    def reconstruct(
        self,
        model: Any,
        pictures: Float[Tensor, "b v 4 height width"],
        w2c: Float[Tensor, "b v 4 4"],
        K: Float[Tensor, "b v 3 3"],
    ) -> tuple[Any, str]:
        """Encode and decode as ever; fuse in groups."""
        encoded = model.encode(pictures, w2c, K)
        v = pictures.shape[1]
        rows, columns = encoded.grid
        if rows % self.stride or columns % self.stride:
            raise ValueError(
                f"lga: a grid of {rows} x {columns} tokens has no groups of every "
                f"{self.stride}-th: choose a stride that divides both"
            )
        fused = encoded.tokens.flatten(1, 2)
        blocks = model.transformer_blocks
        for index, block in enumerate(blocks):
            if index % self.every:
                fused = block(fused)
            else:
                groups = grouped(fused, v, rows, columns, self.stride)
                fused = ungrouped(block(groups), v, rows, columns, self.stride)
        note = f"lga attended in {self.stride**2} groups in {-(-len(blocks) // self.every)} blocks."
        return model.decode(encoded, fused.reshape(encoded.tokens.shape)), note


def grouped(
    tokens: Float[Tensor, "b n d"], v: int, rows: int, columns: int, g: int
) -> Float[Tensor, "groups members d"]:
    """Sort the tokens of v views into g^2 groups per sample."""
    b, _, d = tokens.shape
    grid = tokens.reshape(b, v, rows // g, g, columns // g, g, d)
    return grid.permute(0, 3, 5, 1, 2, 4, 6).reshape(b * g * g, -1, d)


def ungrouped(
    groups: Float[Tensor, "groups members d"], v: int, rows: int, columns: int, g: int
) -> Float[Tensor, "b n d"]:
    """Undo `grouped`."""
    d = groups.shape[-1]
    grid = groups.reshape(-1, g, g, v, rows // g, columns // g, d)
    return grid.permute(0, 3, 4, 1, 5, 2, 6).reshape(len(grid), -1, d)
