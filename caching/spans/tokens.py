"""Some tokens of every feed-forward (ToCa, DuCa): the ones whose input has moved most.

Zou et al. 2024, "Accelerating Diffusion Transformers with Token-wise Feature Caching"
(arXiv:2410.05317) and "Accelerating Diffusion Transformers with Dual Feature Caching"
(arXiv:2412.18911). A feed-forward works on each token alone, so on a skip it can be run for the
share R of the tokens that need it most, exactly, and the others repeat what they had:

    s_t = |x_t - x'_t| / |x'_t|,   F_t = FF(x_t) for the R S tokens of largest s,   else F_t = F'_t

x' and F' are the input and output of the step at which that very token was last computed, so s
grows with age by itself. Attention is repeated as a whole: a token's attention needs all others.
With `every` > 1 tokens are refreshed on the first of that many skips in a row only (DuCa: 2, its
cautious and aggressive steps in turn).

Differs from the authors' code: the score needs neither attention maps (ToCa) nor value norms
(DuCa), so it works with every attention kernel, at the price of holding x'; R is the same in all
blocks.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

import pydantic
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.passes import Pass
from skipstep.caching.spans.feed_forwards import FeedForward, Outputs, SomeTokens, first_skips

__all__ = ["Share", "Tokens", "most_changed"]

Share = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="R: share of the tokens that a skip still computes; at least one is.",
    ),
]


def most_changed(
    x: Float[Tensor, "n s c"], before: Float[Tensor, "n s c"], count: int
) -> Int[Tensor, "n k"]:
    """Return the `count` tokens of each entry whose features changed most, in rising order.

    >>> before = torch.ones(1, 3, 2)
    >>> most_changed(before * torch.tensor([[[1.0], [3.0], [0.5]]]), before, 2)
    tensor([[1, 2]])
    """
    change = (x - before).float().norm(dim=-1) / before.float().norm(dim=-1).clamp_min(1e-12)
    chosen: Tensor = change.topk(count, dim=1).indices.sort(dim=1).values
    return chosen


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Tokens(SomeTokens):
    """Refresh a share of the tokens in every feed-forward and repeat attention."""

    type: Annotated[Literal["tokens"], Field(description="Tag of this span.")] = "tokens"
    share: Share = 0.2
    every: Annotated[
        int, Field(ge=1, description="Refresh on the first of this many skips in a row.")
    ] = 1

    def remember(
        self,
        pass_: Pass,
        outputs: Outputs,
        x: Float[Tensor, "n s c"],
        y: Float[Tensor, "n s d"],
    ) -> None:
        """Keep x'."""
        pass_.keep(_inputs(outputs), x)

    def refresh(
        self,
        place: FeedForward,
        pass_: Pass,
        call_next: Callable[..., Any],
        x: Float[Tensor, "n s c"],
        outputs: Outputs,
    ) -> Float[Tensor, "n s d"]:
        """Return the stored outputs with those of the most changed tokens replaced."""
        known = pass_.guess(outputs)
        per_row = len(x) // len(pass_.rows)
        fresh = [j * per_row + i for j in first_skips(pass_, self.every) for i in range(per_row)]
        if not fresh or not self.share:
            pass_.spare(place)
            return known
        before, tokens = pass_.guess(_inputs(outputs)), x.shape[1]
        count = max(1, round(self.share * tokens))
        entries = torch.tensor(fresh, device=x.device)[:, None]
        chosen = most_changed(x[fresh], before[fresh], count)
        done = len(fresh) / len(x) * count / tokens
        pass_.count_part(place, done)
        y, x_now = known.clone(), before.clone()
        y[entries, chosen] = call_next(x[entries, chosen])
        x_now[entries, chosen] = x[entries, chosen]
        pass_.keep(_inputs(outputs), x_now)
        pass_.keep(outputs, y)
        return y


def _inputs(outputs: Outputs) -> Outputs:
    return (*outputs[:2], "in")
