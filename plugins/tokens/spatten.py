"""SpAtten: fewer and fewer tokens with depth; what was let go stays out.

Wang, Zhang & Han 2021, "SpAtten: Efficient Sparse Attention Architecture with Cascade Token and
Head Pruning" (arXiv:2012.09852). Importance adds up over the layers of one call, and a token that
has left takes no part in any later layer:

    s_i += importance_i,   K_l = (1 - (1 - keep) depth) N   of those still there stay

with depth from 0 in the first self-attention to 1 in the last. Early layers see everything, and the
picture is decided there; the saving is in the late ones. Tokens that have left are fused into one.

Differs from the authors' code: no heads are pruned, and tokens that left get the fused token's
answer; sequences of another length (the levels of a UNet) keep a count of their own.
"""

from typing import Annotated, ClassVar

import pydantic
import torch
from jaxtyping import Float
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.plugins.tokens.base import ImportancePlugin, Place
from skipstep.plugins.tokens.token_map import TokenMap, keep_and_fuse

__all__ = ["SpAtten"]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class SpAtten(ImportancePlugin):
    """Let picture tokens go layer by layer, down to a share in the last one."""

    name: ClassVar[str] = "spatten"
    summary: ClassVar[str] = "Lets picture tokens go for good, more of them with every layer."
    paper: ClassVar[str] = (
        "SpAtten: Efficient Sparse Attention Architecture with Cascade Token and Head Pruning "
        "(arXiv:2012.09852)"
    )

    keep: Annotated[
        float,
        Field(gt=0, le=1, allow_inf_nan=False, description="Share of tokens in the last layer."),
    ] = 0.5

    @property
    def keeps_all(self) -> bool:
        """Say whether nothing leaves."""
        return self.keep == 1

    def choose(
        self, x: Float[Tensor, "n c"], importance: Float[Tensor, " n"] | None, place: Place
    ) -> TokenMap | None:
        """Return who is still there in this layer, for one sample."""
        if importance is None:
            return None
        n = len(x)
        before, is_here = place.memory.get(n, (torch.zeros_like(importance), None))
        total = before + importance
        count = round((1 - (1 - self.keep) * place.depth) * n)
        if is_here is None and count >= n - 1:
            place.memory[n] = total, None
            return None
        map_ = keep_and_fuse(total, count, is_here)
        place.memory[n] = total, map_.slots < count
        return map_
