"""ZipVL: as many tokens as hold a given share of the attention, layer by layer.

He et al. 2024, "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification"
(arXiv:2410.08584). With importance a_i that sums to 1, sorted from the largest,

    p = min { k : a_(1) + ... + a_(k) >= mass }

tokens are kept: few where attention is concentrated, many where it is spread. The rest is fused
into one token as in EViT. The share saved is therefore not known before the run; the report tells
it.

Differs from the authors' code: made for the prompt of a language model, where the rest is not
attended to at all and the values are quantised; here the rest is fused, because its tokens need an
answer. Each sample counts for itself.
"""

from typing import Annotated, ClassVar

import pydantic
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.plugins.tokens.base import ImportancePlugin, Place
from skipstep.plugins.tokens.token_map import TokenMap, keep_and_fuse

__all__ = ["ZipVL", "smallest_count"]


def smallest_count(importance: Float[Tensor, " n"], mass: float) -> int:
    """Return how many of the most important tokens are needed to reach the mass.

    >>> import torch
    >>> smallest_count(torch.tensor([0.1, 0.6, 0.2, 0.1]), 0.75)
    2
    """
    held = importance.double().sort(descending=True).values.cumsum(0)
    # The first count that reaches it: one more than those that fall short.
    short = int((held < mass * held[-1]).sum())
    return min(short + 1, len(importance))


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class ZipVL(ImportancePlugin):
    """Keep the fewest picture tokens that hold a share of the attention."""

    name: ClassVar[str] = "zipvl"
    summary: ClassVar[str] = "Keeps the fewest picture tokens that hold a share of the attention."
    paper: ClassVar[str] = (
        "ZipVL: Efficient Large Vision-Language Models with Dynamic Token Sparsification "
        "(arXiv:2410.08584)"
    )

    mass: Annotated[
        float,
        Field(gt=0, le=1, allow_inf_nan=False, description="Share of the attention kept."),
    ] = 0.9

    @property
    def keeps_all(self) -> bool:
        """Say whether nothing is fused."""
        return self.mass == 1

    def choose(
        self, x: Float[Tensor, "n c"], importance: Float[Tensor, " n"] | None, place: Place
    ) -> TokenMap | None:
        """Return the kept and fused tokens of one sample."""
        if importance is None:
            return None
        count = smallest_count(importance, self.mass)
        return keep_and_fuse(importance, count) if count < len(x) - 1 else None
