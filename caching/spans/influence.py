"""Some tokens of every feed-forward (ToCa): those that weigh most on others and wait longest.

Zou et al. 2024, "Accelerating Diffusion Transformers with Token-wise Feature Caching"
(arXiv:2410.05317). As span `tokens`, with another score of token t on a skip:

    S_t = l_1 s_1 + l_2 s_2 + l_3 s_3, and (1 + l_4) S_t where it is the largest of its 2 x 2 patch
    s_1 = mean over heads and queries of the self-attention that t receives, of unit length over t
    s_2 = -sum_j c_tj log c_tj, the entropy of t's attention to the text, of unit length over t
    s_3 = (steps since t was last computed) / N,   N = `period`

and a share R of the tokens that falls with depth, R (1 + w (1 - 2 l / (L - 1))) in block l of L.
s_1 and s_2 are taken on the first skip behind a computed step, from the block's own query and key
projections of what its attention is then given, and hold until the next; s_1 from `queries` evenly
spaced queries. What that costs is counted as work of the attention.

A term whose maps cannot be reached (no separate query and key projections, another number of
tokens) is left out; the 2 x 2 patches need a square number of tokens.

Differs from the authors' code: attention maps are made apart, from some queries, so every attention
kernel works, without rotary positions; attention is repeated as a whole (theirs too, by default, in
self-attention); the interval is even; R is the same at all steps.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from skipstep.caching.base import Gate
from skipstep.caching.passes import Pass, Target
from skipstep.caching.spans.feed_forwards import (
    FeedForward,
    Outputs,
    SomeTokens,
    first_skips,
)
from skipstep.caching.spans.modules import ModulePlace
from skipstep.caching.spans.tokens import Share
from skipstep.caching.tree import select_rows

__all__ = ["EntropyWeight", "InfluenceWeight", "InfluentialTokens", "SpreadBonus", "WaitingWeight"]
__all__ += ["best_of_patches", "entropy", "received"]

TermWeight = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
InfluenceWeight = Annotated[
    TermWeight, Field(description="l_1: weight of the attention a token receives.")
]
EntropyWeight = Annotated[
    TermWeight, Field(description="l_2: weight of the entropy of its attention to the text.")
]
WaitingWeight = Annotated[TermWeight, Field(description="l_3: weight of the waiting time.")]
SpreadBonus = Annotated[
    TermWeight, Field(description="l_4: bonus of the best of every 2 x 2 tokens.")
]


def received(q: Float[Tensor, "n h m d"], k: Float[Tensor, "n h s d"]) -> Float[Tensor, "n s"]:
    """Return how much attention each key receives, the mean over heads and queries.

    >>> q, k = torch.tensor([[[[9.0, 0.0]]]]), torch.tensor([[[[9.0, 0.0], [0.0, 9.0]]]])
    >>> received(q, k).round()
    tensor([[1., 0.]])
    """
    weights: Tensor = torch.softmax(q.float() @ k.float().mT / math.sqrt(q.shape[-1]), dim=-1)
    return weights.mean((1, 2))


def entropy(q: Float[Tensor, "n h s d"], k: Float[Tensor, "n h m d"]) -> Float[Tensor, "n s"]:
    """Return the entropy in nats of each query's attention, the mean over heads.

    >>> entropy(torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 2, 4)).exp()
    tensor([[2.]])
    """
    logits: Tensor = q.float() @ k.float().mT / math.sqrt(q.shape[-1])
    logs = torch.log_softmax(logits, dim=-1)
    return -(logs.exp() * logs).sum(-1).mean(1)


def best_of_patches(score: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    """Return 1 where a token has the largest score of its 2 x 2 patch, else 0; all 0 where the
    tokens are no square.

    >>> best_of_patches(torch.tensor([[0.0, 1.0, 5.0, 2.0, 3.0, 4.0, 6.0, 7.0, 8.0]]))
    tensor([[0., 0., 1., 0., 1., 0., 0., 1., 1.]])
    """
    side = math.isqrt(score.shape[1])
    if side * side != score.shape[1] or side < 2:
        return torch.zeros_like(score)
    grid = score.reshape(-1, 1, side, side)
    largest = torch.nn.functional.max_pool2d(grid, 2, ceil_mode=True)
    spread = largest.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :side, :side]
    best: Tensor = (grid == spread).to(score.dtype).reshape(score.shape)
    return best


def unit(score: Float[Tensor, "n s"]) -> Float[Tensor, "n s"]:
    """Scale each entry's scores to length 1."""
    return torch.nn.functional.normalize(score, dim=1)


@dataclass(frozen=True)
class _Attention(ModulePlace):
    """One attention's place, with the module whose projections are asked."""

    module: nn.Module


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class InfluentialTokens(SomeTokens):
    """Refresh a share of the tokens in every feed-forward, chosen by attention and waiting time."""

    type: Annotated[Literal["influential_tokens"], Field(description="Tag of this span.")] = (
        "influential_tokens"
    )
    share: Share = 0.1
    influence: InfluenceWeight = 1.0
    entropy: EntropyWeight = 0.0
    waiting: WaitingWeight = 0.25
    spread: SpreadBonus = 0.6
    depth_slope: Annotated[
        float,
        Field(ge=0, le=1, description="w: how much more front blocks refresh than rear ones."),
    ] = 0.2
    period: Annotated[int, Field(ge=1, description="N: steps that count as a long wait.")] = 3
    queries: Annotated[int, Field(ge=1, description="Queries that s_1 is the mean of.")] = 64

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return every attention, with its module, and every feed-forward."""
        return [
            (
                module,
                place
                if isinstance(place, FeedForward)
                else _Attention(**vars(place), module=module),
            )
            for module, place in super().places(target, gate)
        ]

    def visit(
        self,
        place: Any,
        pass_: Pass,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run, partly run or replay one module; look at an attention that is replayed."""
        if isinstance(place, _Attention) and pass_.mode == "skip":
            self._look(place, pass_, args, kwargs)
        return super().visit(place, pass_, call_next, args, kwargs)

    def remember(
        self,
        pass_: Pass,
        outputs: Outputs,
        x: Float[Tensor, "n s c"],
        y: Float[Tensor, "n s d"],
    ) -> None:
        """Note when every token was computed: now."""
        now = float(pass_.step.index)
        when = x.new_full((len(pass_.rows), len(x) // len(pass_.rows), x.shape[1]), now)
        pass_.memory.note(("when", *outputs), when.float(), pass_.rows)

    def _look(
        self, place: _Attention, pass_: Pass, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Take s_1 or s_2 of the rows that were computed one step ago, and count what it costs."""
        is_cross = place.kind == "cross_attention"
        if not (self.entropy if is_cross else self.influence):
            return
        rows = first_skips(pass_)
        tokens, text = _attended(args, kwargs)
        if not rows or tokens is None or (is_cross and text is None):
            return
        per_row = len(tokens) // len(pass_.rows)
        total, frames = len(pass_.rows), (per_row,)
        own, text = select_rows([tokens, text], rows, total, lists_are_rows=False, frames=frames)
        if is_cross and text.shape[0] != own.shape[0]:
            return
        asked = own if is_cross else own[:, :: math.ceil(own.shape[1] / self.queries)]
        keys = text if is_cross else own
        heads = _heads(place.module, asked, keys)
        if heads is None:
            return
        score = unit(entropy(*heads) if is_cross else received(*heads))
        key = ("entropy" if is_cross else "influence", place.block)
        shaped = score.reshape(len(rows), per_row, -1)
        pass_.memory.note(key, shaped, [pass_.rows[j] for j in rows])
        cost = _share_of_work(own.shape[1], keys.shape[1], asked.shape[1], own.shape[2])
        pass_.work += cost * len(rows)
        pass_.spare(place, -cost * len(rows) / total)

    def refresh(
        self,
        place: FeedForward,
        pass_: Pass,
        call_next: Callable[..., Any],
        x: Float[Tensor, "n s c"],
        outputs: Outputs,
    ) -> Float[Tensor, "n s d"]:
        """Return the stored outputs with those of the tokens of largest score replaced."""
        known = pass_.guess(outputs)
        share = self.share * (1 + self.depth_slope * (1 - 2 * place.depth))
        if not share:
            pass_.spare(place)
            return known
        when = pass_.memory.noted(("when", *outputs), pass_.rows)
        chosen = self._chosen(place, pass_, when.flatten(0, 1), share)
        entries = torch.arange(len(x), device=x.device)[:, None]
        done = chosen.shape[1] / x.shape[1]
        pass_.count_part(place, done)
        y, later = known.clone(), when.flatten(0, 1).clone()
        y[entries, chosen] = call_next(x[entries, chosen])
        later[entries, chosen] = float(pass_.step.index)
        pass_.memory.note(("when", *outputs), later.reshape(when.shape), pass_.rows)
        pass_.keep(outputs, y)
        return y

    def _chosen(
        self, place: FeedForward, pass_: Pass, when: Float[Tensor, "n s"], share: float
    ) -> Int[Tensor, "n k"]:
        """Return the tokens of largest score."""
        score = self.waiting * (pass_.step.index - when) / self.period
        terms = ("influence", self.influence), ("entropy", self.entropy)
        for name, weight in terms:
            key = (name, place.block)
            if weight and not place.is_text and key in pass_.memory.notes:
                found = pass_.memory.noted(key, pass_.rows).flatten(0, 1)
                score = score + weight * found if found.shape == score.shape else score
        score = score * (1 + self.spread * best_of_patches(score))
        count = max(1, min(when.shape[1], round(share * when.shape[1])))
        chosen: Tensor = score.topk(count, dim=1).indices
        return chosen


def _attended(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Return the tokens that an attention is given, and the text if it is given one."""
    tokens = kwargs.get("hidden_states", args[0] if args else None)
    text = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
    is_tokens = isinstance(tokens, Tensor) and tokens.ndim == 3
    is_text = isinstance(text, Tensor) and text.ndim == 3
    return tokens if is_tokens else None, text if is_text else None


def _heads(module: nn.Module, asked: Tensor, keys: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return queries and keys by head, or None where the module does not project them apart."""
    to_q, to_k = getattr(module, "to_q", None), getattr(module, "to_k", None)
    heads = getattr(module, "heads", None)
    if to_q is None or to_k is None or not isinstance(heads, int):
        return None
    q, k = to_q(asked), to_k(keys)
    if q.shape[-1] != k.shape[-1] or q.shape[-1] % heads:
        return None
    q, k = (x.reshape(*x.shape[:2], heads, -1).transpose(1, 2) for x in (q, k))
    return q, k


def _share_of_work(tokens: int, keys: int, asked: int, channels: int) -> float:
    """Return what projecting `keys` and `asked` queries and their map cost, as a share of an
    attention of `tokens` to `keys`.
    """
    cost = (keys + asked) * channels + asked * keys
    return cost / (2 * (tokens + keys) * channels + 2 * tokens * keys)
