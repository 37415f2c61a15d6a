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
from typing import Annotated, Any, Literal

import pydantic
import torch
from jaxtyping import Float, Int
from pydantic import ConfigDict, Field
from torch import Tensor

from skipstep.caching.passes import Pass
from skipstep.caching.spans.feed_forwards import FeedForward, Outputs, SomeTokens, first_skips
from skipstep.kernels.kmeans import kmeans

__all__ = ["ClusterCount", "Clusters", "Propagation", "representatives"]

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


def representatives(
    x: Float[Tensor, "n s c"], k: int, *, rounds: int
) -> tuple[Int[Tensor, "n s"], Int[Tensor, "n k"]]:
    """Return the cluster of every token, at most k of them, and the token nearest to each cluster's
    mean; 0 for an empty cluster.

    >>> x = torch.tensor([[[0.0], [9.0], [2.0], [9.5], [1.0]]])
    >>> representatives(x, 2, rounds=3)
    (tensor([[0, 1, 0, 1, 0]]), tensor([[4, 1]]))
    """
    x = x.float()
    found = kmeans(x, min(k, x.shape[1]), iterations=rounds + 1)
    clusters = found.ids.long()
    distances = torch.cdist(x, found.centroids, compute_mode="donot_use_mm_for_euclid_dist")
    is_other = clusters[..., None] != torch.arange(distances.shape[2], device=x.device)
    return clusters, distances.masked_fill(is_other, torch.inf).argmin(1)


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Clusters(SomeTokens):
    """Run every feed-forward for one token of each cluster and correct the others by it."""

    type: Annotated[Literal["clusters"], Field(description="Tag of this span.")] = "clusters"
    clusters: ClusterCount = 16
    propagation: Propagation = 0.25
    rounds: Annotated[int, Field(ge=0, le=50, description="Rounds of k-means.")] = 5

    def remember(
        self,
        pass_: Pass,
        outputs: Outputs,
        x: Float[Tensor, "n s c"],
        y: Float[Tensor, "n s d"],
    ) -> None:
        """Note the output, over that of the feed-forward before: the deepest one's stays."""
        shaped = y.detach().reshape(len(pass_.rows), -1, *y.shape[1:])
        pass_.memory.note(("deepest", y.shape[1]), shaped, pass_.rows)

    def refresh(
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
        pass_.count_part(place, done)
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
            found = representatives(values.flatten(0, 1), self.clusters, rounds=self.rounds)
            for key, each in zip(keys, found, strict=True):
                memory.note(key, each.reshape(*values.shape[:2], -1), rows)
        clusters, chosen = (memory.noted(key, pass_.rows).flatten(0, 1) for key in keys)
        return clusters, chosen
