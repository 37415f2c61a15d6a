"""Feed-forwards, token by token: what the spans that compute only some tokens have in common.

A feed-forward works on each token alone, so on a skip it can be run for a few tokens, exactly.
Attention needs all tokens at once and is repeated as a whole. That a feed-forward works token by
token is tried out on its first call; one that does not is computed in full, and so are blocks that
end in one projection of attention and feed-forward together (the second list of FLUX).
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from skipstep.caching.base import Gate, Span
from skipstep.caching.passes import Pass, Target
from skipstep.caching.spans.modules import Modules, blocks_of, next_key

__all__ = ["ATTENTIONS", "FeedForward", "Outputs", "SomeTokens", "first_skips"]

TOKENWISE = 2e-2
"""Largest relative difference, in one token, of a feed-forward that works token by token."""
ATTENTIONS = Modules(kinds=("attention", "cross_attention"))
FEED_FORWARDS = Modules(kinds=("feed_forward",))

Outputs = tuple[str, int, str]


@dataclass(frozen=True)
class FeedForward:
    """One feed-forward's place: its path, the number of its block, and how deep that lies, from 0
    for the first block to 1 for the last. `is_text` marks that of the text's own stream.
    """

    path: str
    block: int
    depth: float
    is_text: bool


class SomeTokens(Span):
    """A span that computes some tokens of every feed-forward on a skip, and repeats attention.

    A subclass says with `refresh` which tokens, and with `remember` what it keeps to choose them.
    """

    reaches_into_blocks: ClassVar[bool] = True

    def why_not(self, target: Target, gate: Gate[Any]) -> str | None:
        """Return why this denoiser has no tokens to choose from, or None."""
        if gate.looks_at == "first_block":
            return (
                f"gate {gate.type!r} decides behind the first block, which span {self.type!r} does "
                "not watch: use a gate that looks at the step ('interval') or the input "
                "('easycache')"
            )
        return FEED_FORWARDS.why_not(target, gate)

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return every attention and every feed-forward."""
        last = max(1, len(blocks_of(target)) - 1)
        feed_forwards = [
            (
                module,
                FeedForward(place.path, place.block, place.block / last, "context" in place.path),
            )
            for module, place in FEED_FORWARDS.places(target, gate)
        ]
        return [*feed_forwards, *ATTENTIONS.places(target, gate)]

    def full_work(self, target: Target) -> float:
        """Count the attentions and feed-forwards of an uncached call."""
        return FEED_FORWARDS.full_work(target) + ATTENTIONS.full_work(target)

    def visit(
        self,
        place: Any,
        pass_: Pass,
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run, partly run or replay one module."""
        if not isinstance(place, FeedForward):
            return ATTENTIONS.visit(place, pass_, call_next, args, kwargs)
        x = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(x, Tensor) or x.ndim != 3:
            return pass_.run(call_next, args, kwargs)
        path, nth = next_key(place.path, pass_)
        outputs = (path, nth, "out")
        if pass_.mode == "skip" and pass_.has(outputs):
            return self.refresh(place, pass_, call_next, x, outputs)
        y = pass_.run(call_next, args, kwargs)
        if pass_.mode == "compute" and (pass_.has(outputs) or _is_tokenwise(call_next, x, y)):
            pass_.keep(outputs, y)
            # Where there is no memory for values nothing is noted of them either.
            if pass_.has(outputs):
                self.remember(pass_, outputs, x, y)
            pass_.feature = y
        return y

    @abstractmethod
    def refresh(
        self,
        place: FeedForward,
        pass_: Pass,
        call_next: Callable[..., Any],
        x: Float[Tensor, "n s c"],
        outputs: Outputs,
    ) -> Float[Tensor, "n s d"]:
        """Return what a feed-forward makes of x on a skip, from the stored outputs."""

    @abstractmethod
    def remember(
        self,
        pass_: Pass,
        outputs: Outputs,
        x: Float[Tensor, "n s c"],
        y: Float[Tensor, "n s d"],
    ) -> None:
        """Keep what `refresh` needs of a feed-forward that was computed in full."""


def first_skips(pass_: Pass, every: int | None = None) -> list[int]:
    """Return the places in `pass_.rows` of the samples that were computed one step ago, or as many
    skips ago as `every` divides.
    """
    skips = pass_.memory.skips
    return [
        j
        for j, row in enumerate(pass_.rows)
        if (skips[row] == 0 if every is None else skips[row] % every == 0)
    ]


def _is_tokenwise(call_next: Callable[..., Any], x: Float[Tensor, "n s c"], y: Any) -> bool:
    """Say whether one token alone gives what it gave among the others."""
    if not isinstance(y, Tensor) or y.shape[:2] != x.shape[:2]:
        return False
    alone, among = call_next(x[:, :1]), y[:, :1]
    return bool((alone - among).abs().mean() <= TOKENWISE * among.abs().mean())
