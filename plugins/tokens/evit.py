"""EViT: attend to the tokens that receive attention, and fuse all others into one.

Liang et al. 2022, "Not All Patches are What You Need" (arXiv:2202.07800). With importance a_i, the
K = ceil(keep N) most important tokens stay, and one more stands for the rest:

    x_fused = sum of a_i x_i / sum of a_i   over the tokens that were not kept

Every token that was fused gets the fused token's answer. Background survives this well; a picture
whose detail is everywhere does not.

Differs from the authors' code: importance is the attention received from sampled tokens, since a
diffusion model has no class token; fused tokens come back behind every attention, where a
classifier lets them go.
"""

import math
from typing import Annotated, ClassVar

import pydantic
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.plugins.tokens.base import ImportancePlugin, Place
from skipstep.plugins.tokens.token_map import TokenMap, keep_and_fuse

__all__ = ["EViT"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class EViT(ImportancePlugin):
    """Keep the most attended share of the picture tokens and fuse the rest."""

    name: ClassVar[str] = "evit"
    summary: ClassVar[str] = "Keeps the most attended picture tokens and fuses the rest into one."
    paper: ClassVar[str] = "Not All Patches are What You Need (arXiv:2202.07800)"

    keep: Annotated[
        float, Field(gt=0, le=1, allow_inf_nan=False, description="Share of tokens kept.")
    ] = 0.7

    @property
    def keeps_all(self) -> bool:
        """Say whether nothing is fused."""
        return self.keep == 1

    def choose(
        self, x: Float[Tensor, "n c"], importance: Float[Tensor, " n"] | None, place: Place
    ) -> TokenMap | None:
        """Return the kept and fused tokens of one sample."""
        count = math.ceil(self.keep * len(x))
        if importance is None or count >= len(x) - 1:
            return None
        return keep_and_fuse(importance, count)
