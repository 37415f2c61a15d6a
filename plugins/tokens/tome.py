"""ToMe for diffusion: merge the most similar tokens before self-attention, and share the answer.

Bolya & Hoffman 2023, "Token Merging for Fast Stable Diffusion" (arXiv:2303.17604). One token of
every 2 x 2 cell is a destination, the others are sources; each source knows its most similar
destination by the cosine of their features, and the r N most similar sources are averaged into
theirs:

    d(i) = argmax_j cos(x_i, x_j),   x'_j = mean of x_j and all merged x_i with d(i) = j

Attention takes (1 - r)^2 of its work and its projections 1 - r; all merged tokens get the same
answer, so fine texture suffers first.

Differs from the authors' code: the destination is a cell's first token, not a random one, so that
equal runs are equal; where the grid is not known, every fourth token of the sequence is one.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.plugins.tokens.base import Place, TokenPlugin
from skipstep.plugins.tokens.token_map import TokenMap

__all__ = ["ToMe", "destinations", "merge_similar"]

CELL = 2


def destinations(tokens: int, grid: tuple[int, int, int] | None) -> Int[Tensor, " d"]:
    """Return the tokens that others may merge into: the first of every 2 x 2 cell.

    >>> destinations(8, (1, 2, 4))
    tensor([0, 2])
    """
    if grid is None or grid[0] * grid[1] * grid[2] != tokens:
        return torch.arange(0, tokens, CELL**2)
    raster = torch.arange(tokens).reshape(grid)
    return raster[:, ::CELL, ::CELL].flatten()


def merge_similar(
    x: Float[Tensor, "n c"], count: int, grid: tuple[int, int, int] | None
) -> TokenMap:
    """Merge the `count` sources that are most similar to a destination into it."""
    n = len(x)
    is_destination = torch.zeros(n, dtype=torch.bool)
    is_destination[destinations(n, grid)] = True
    targets = is_destination.nonzero()[:, 0].to(x.device)
    sources = (~is_destination).nonzero()[:, 0].to(x.device)
    unit = torch.nn.functional.normalize(x.float(), dim=1)
    similarity, nearest = (unit[sources] @ unit[targets].T).max(1)
    merged = similarity.argsort(descending=True, stable=True)[:count]
    stays = torch.ones(n, dtype=torch.int64, device=x.device)
    stays[sources[merged]] = 0
    slots = stays.cumsum(0) - 1
    slots[sources[merged]] = slots[targets[nearest[merged]]]
    places = stays.argsort(descending=True, stable=True)[: n - count]
    sizes = torch.zeros(n - count, device=x.device).index_add_(
        0, slots, torch.ones_like(unit[:, 0])
    )
    return TokenMap(slots, 1 / sizes[slots], places)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ToMe(TokenPlugin):
    """Merge similar picture tokens before every self-attention."""

    name: ClassVar[str] = "tome"
    summary: ClassVar[str] = "Merges similar picture tokens before self-attention."
    paper: ClassVar[str] = "Token Merging for Fast Stable Diffusion (arXiv:2303.17604)"

    ratio: Annotated[
        float,
        Field(ge=0, le=0.75, allow_inf_nan=False, description="r: share of tokens merged away."),
    ] = 0.5

    @property
    def keeps_all(self) -> bool:
        """Say whether nothing is merged."""
        return self.ratio == 0

    def choose(
        self, x: Float[Tensor, "n c"], importance: Float[Tensor, " n"] | None, place: Place
    ) -> TokenMap | None:
        """Return the merges of one sample."""
        sources = len(x) - len(destinations(len(x), place.grid))
        count = min(int(self.ratio * len(x)), sources)
        return merge_similar(x, count, place.grid) if count else None
