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

That a feed-forward works token by token is tried out on its first call; one that does not is
computed in full.

Differs from the authors' code: the score needs neither attention maps (ToCa) nor value norms
(DuCa), so it works with every attention kernel, at the price of holding x'; R is the same in all
blocks; blocks that end in one projection of attention and feed-forward together (the second list of
FLUX) are computed in full.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from skipstep.caching.base import Gate, Span
from skipstep.caching.passes import Pass, Target
from skipstep.caching.spans.modules import Modules

__all__ = ["Tokens", "most_changed"]

TOKENWISE = 2e-2
"""Largest relative difference, in one token, of a feed-forward that works token by token."""


@dataclass(frozen=True)
class _FeedForward:
    """One feed-forward's place."""

    path: str


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
class Tokens(Span):
    """Refresh a share of the tokens in every feed-forward and repeat attention."""

    type: Annotated[Literal["tokens"], Field(description="Tag of this span.")] = "tokens"
    share: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            allow_inf_nan=False,
            description="R: share of the tokens that a skip still computes; at least one is.",
        ),
    ] = 0.2
    every: Annotated[
        int, Field(ge=1, description="Refresh on the first of this many skips in a row.")
    ] = 1

    def why_not(self, target: Target, gate: Gate[Any]) -> str | None:
        """Return why this denoiser has no tokens to choose from, or None."""
        if gate.looks_at == "first_block":
            return (
                f"gate {gate.type!r} decides behind the first block, which span 'tokens' does not "
                "watch: use a gate that looks at the step ('interval') or the input ('easycache')"
            )
        return _feed_forwards().why_not(target, gate)

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return every attention and every feed-forward."""
        feed_forwards = [
            (module, _FeedForward(place.path))
            for module, place in _feed_forwards().places(target, gate)
        ]
        return [*feed_forwards, *_attentions().places(target, gate)]

    def full_work(self, target: Target) -> float:
        """Count the modules of an uncached call."""
        return _feed_forwards().full_work(target) + _attentions().full_work(target)

    def visit(
        self,
        place: Any,
        pass_: Pass,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run, partly run or replay one module."""
        if not isinstance(place, _FeedForward):
            return _attentions().visit(place, pass_, call_next, args, kwargs)
        x = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(x, Tensor) or x.ndim != 3:
            return pass_.run(call_next, args, kwargs)
        nth = pass_.trace.get(place.path, 0)
        pass_.trace[place.path] = nth + 1
        inputs, outputs = (place.path, nth, "in"), (place.path, nth, "out")
        if pass_.mode == "skip" and pass_.has(outputs):
            return self._refresh(place, pass_, call_next, x, inputs, outputs)
        y = pass_.run(call_next, args, kwargs)
        if pass_.mode == "compute" and (pass_.has(outputs) or _is_tokenwise(call_next, x, y)):
            pass_.keep(inputs, x)
            pass_.keep(outputs, y)
            pass_.feature = y
        return y

    def _refresh(
        self,
        place: _FeedForward,
        pass_: Pass,
        call_next: Callable[..., Any],
        x: Float[Tensor, "n s c"],
        inputs: tuple[Any, ...],
        outputs: tuple[Any, ...],
    ) -> Float[Tensor, "n s d"]:
        """Return the stored outputs with those of the most changed tokens replaced."""
        known = pass_.guess(outputs)
        per_row = len(x) // len(pass_.rows)
        fresh = [
            j * per_row + i
            for j, row in enumerate(pass_.rows)
            if self.share and pass_.memory.skips[row] % self.every == 0
            for i in range(per_row)
        ]
        if not fresh:
            pass_.spare(place)
            return known
        before, tokens = pass_.guess(inputs), x.shape[1]
        count = max(1, round(self.share * tokens))
        entries = torch.tensor(fresh, device=x.device)[:, None]
        chosen = most_changed(x[fresh], before[fresh], count)
        done = len(fresh) / len(x) * count / tokens
        pass_.work += len(pass_.rows) * done
        pass_.spare(place, 1 - done)
        y, x_now = known.clone(), before.clone()
        y[entries, chosen] = call_next(x[entries, chosen])
        x_now[entries, chosen] = x[entries, chosen]
        pass_.keep(inputs, x_now)
        pass_.keep(outputs, y)
        return y


def _attentions() -> Modules:
    return Modules(kinds=("attention", "cross_attention"))


def _feed_forwards() -> Modules:
    return Modules(kinds=("feed_forward",))


def _is_tokenwise(call_next: Callable[..., Any], x: Float[Tensor, "n s c"], y: Any) -> bool:
    """Say whether one token alone gives what it gave among the others."""
    if not isinstance(y, Tensor) or y.shape[:2] != x.shape[:2]:
        return False
    alone, among = call_next(x[:, :1]), y[:, :1]
    return bool((alone - among).abs().mean() <= TOKENWISE * among.abs().mean())
