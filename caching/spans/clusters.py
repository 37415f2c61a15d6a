"""One token of every cluster in every feed-forward, whose error corrects its cluster (ClusCa).

Zheng et al. 2025, "Compute Only 16 Tokens in One Timestep: Accelerating Diffusion Transformers with
Cluster-Driven Feature Caching" (arXiv:2509.10312). Neighbouring tokens change alike, so what one
computed token tells about its forecast is taken for true of those like it:

    the tokens of a computed step fall into K clusters by what a feed-forward made of them
    F_r = FF(x_r)                                     for the representative r of each cluster
    F_t = F_hat_t + gamma (F_r - F_hat_r)             for the other tokens t of its cluster

with F_hat the forecast from computed steps. Attention is forecast as a whole. Clusters are found on
the first skip behind a computed step, by the values last computed in the deepest feed-forward of
that many tokens, with k-means from evenly spaced tokens; all blocks share them. Work on clusters is
not counted (K `rounds` / (8 c) of one feed-forward of c channels).

Differs from the authors' code: the representative is the token nearest to its cluster's mean, not
a random one, so equal runs are equal; gamma weighs the representative's error, theirs the mean of
its values; corrected values are not stored, so the next skip starts from computed steps again.
"""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import pydantic
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from skipstep.caching.base import Gate, Span
from skipstep.caching.passes import Pass, Target
from skipstep.caching.spans.feed_forwards import (
    ATTENTIONS,
    FeedForward,
    Outputs,
    feed_forwards_in,
    first_skips,
    units_of,
    visit_feed_forward,
    why_no_tokens,
)

__all__ = ["ClusterCount", "Clusters", "Propagation", "nearest_tokens", "token_clusters"]

ClusterCount = Annotated[
    int, Field(ge=1, le=1024, description="K: clusters, and tokens that a skip computes.")
]
Propagation = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="gamma: share of a representative's error handed on to its cluster.",
    ),
]


def squared_distances(
    x: Float[Tensor, "n s c"], centres: Float[Tensor, "n k c"]
) -> Float[Tensor, "n s k"]:
    """Return |x_s - m_k|^2 up to |x_s|^2, which is the same for all k."""
    return (centres**2).sum(-1)[:, None] - 2 * x @ centres.mT


def token_clusters(x: Float[Tensor, "n s c"], k: int, *, rounds: int) -> Int[Tensor, "n s"]:
    """Return the cluster of every token by `rounds` of Lloyd's k-means.

    The first means are evenly spaced tokens. A cluster that loses its tokens keeps its mean.

    >>> token_clusters(torch.tensor([[[0.0], [9.0], [0.1], [9.1]]]), 2, rounds=3)
    tensor([[0, 1, 0, 1]])
    """
    x = x.float()
    tokens = x.shape[1]
    k = min(k, tokens)
    first = torch.arange(k, device=x.device) * tokens // k
    centres = x[:, first]
    clusters = squared_distances(x, centres).argmin(-1)
    for _ in range(rounds):
        member = torch.nn.functional.one_hot(clusters, k).to(x.dtype)  # [n, s, k]
        count = member.sum(1)[..., None]
        centres = torch.where(count > 0, member.mT @ x / count.clamp_min(1), centres)
        clusters = squared_distances(x, centres).argmin(-1)
    return clusters


def nearest_tokens(
    x: Float[Tensor, "n s c"], clusters: Int[Tensor, "n s"], k: int
) -> Int[Tensor, "n k"]:
    """Return the token of each cluster that lies nearest to its mean; 0 for an empty cluster.

    >>> x = torch.tensor([[[0.0], [9.0], [2.0], [9.5], [1.0]]])
    >>> nearest_tokens(x, torch.tensor([[0, 1, 0, 1, 0]]), 2)
    tensor([[4, 1]])
    """
    x = x.float()
    member = torch.nn.functional.one_hot(clusters, k).to(x.dtype)
    centres = member.mT @ x / member.sum(1)[..., None].clamp_min(1)
    distance = squared_distances(x, centres) + (x**2).sum(-1, keepdim=True)
    return distance.masked_fill(member == 0, torch.inf).argmin(1)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Clusters(Span):
    """Run every feed-forward for one token of each cluster and correct the others by it."""

    reaches_into_blocks: ClassVar[bool] = True

    type: Annotated[Literal["clusters"], Field(description="Tag of this span.")] = "clusters"
    clusters: ClusterCount = 16
    propagation: Propagation = 0.25
    rounds: Annotated[int, Field(ge=0, le=50, description="Rounds of k-means.")] = 5

    def why_not(self, target: Target, gate: Gate[Any]) -> str | None:
        """Return why this denoiser has no tokens to choose from, or None."""
        return why_no_tokens(self.type, target, gate)

    def places(self, target: Target, gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return every attention and every feed-forward."""
        return [*feed_forwards_in(target, gate), *ATTENTIONS.places(target, gate)]

    def full_work(self, target: Target) -> float:
        """Count the modules of an uncached call."""
        return units_of(target)

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

        def keep(outputs: Outputs, x: Tensor, y: Tensor) -> None:
            rows = len(pass_.rows)
            shaped = y.detach().reshape(rows, len(y) // rows, *y.shape[1:])
            pass_.memory.note(("deepest", y.shape[1]), shaped, pass_.rows)

        return visit_feed_forward(
            place,
            pass_,
            call_next,
            args,
            kwargs,
            refresh=lambda outputs, x: self._refresh(place, pass_, call_next, x, outputs),
            keep=keep,
        )

    def _refresh(
        self,
        place: FeedForward,
        pass_: Pass,
        call_next: Callable[..., Any],
        x: Float[Tensor, "n s c"],
        outputs: Outputs,
    ) -> Float[Tensor, "n s d"]:
        """Return the forecast outputs, those of representatives computed and others corrected."""
        forecast = pass_.guess(outputs)
        clusters, chosen = self._clusters(pass_, x.shape[1])
        entries = torch.arange(len(x), device=x.device)[:, None]
        done = chosen.shape[1] / x.shape[1]
        pass_.work += len(pass_.rows) * done
        pass_.spare(place, 1 - done)
        computed = call_next(x[entries, chosen])
        error = computed - forecast[entries, chosen]
        y: Tensor = forecast + self.propagation * error[entries, clusters]
        y[entries, chosen] = computed
        return y

    def _clusters(self, pass_: Pass, tokens: int) -> tuple[Int[Tensor, "n s"], Int[Tensor, "n k"]]:
        """Return the clusters and representatives of this pass's samples, found anew for those that
        were computed one step ago.
        """
        memory, keys = pass_.memory, (("clusters", tokens), ("chosen", tokens))
        rows = [pass_.rows[j] for j in first_skips(pass_)]
        if rows and keys not in pass_.trace:
            pass_.trace[keys] = True
            values = memory.noted(("deepest", tokens), rows)
            flat = values.flatten(0, 1)
            found = token_clusters(flat, self.clusters, rounds=self.rounds)
            chosen = nearest_tokens(flat, found, min(self.clusters, tokens))
            for key, each in zip(keys, (found, chosen), strict=True):
                memory.note(key, each.reshape(*values.shape[:2], -1), rows)
        clusters, chosen = (memory.noted(key, pass_.rows).flatten(0, 1) for key in keys)
        return clusters, chosen
