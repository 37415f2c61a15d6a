"""k-means of tokens (Lloyd), many lists at a time: the clusters of semantic permutation.

id_i = argmin_j |x_i - c_j|^2 = argmin_j |c_j|^2 - 2 x_i . c_j
c_j  = mean of the tokens with id j, or what it was if there are none

Yang et al. 2025, Sparse VideoGen2 (arXiv:2505.18875), cluster queries and keys per head and start
from the centroids of the step before, so that two iterations do. Distances are compared with
centroids rounded to the tokens' type, as tensor cores need them; means are taken in fp32. The first
of several nearest clusters wins, so equal runs have equal clusters.

Differs from the authors' code: starts from evenly spaced tokens instead of random ones; no atomics.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skipstep.kernels.dispatch import backend_for, custom_op, upcast_dot

__all__ = ["Clusters", "kmeans", "kmeans_ref", "sorted_by_cluster"]

CHUNK = 2**22
"""Distances that the plain path holds at a time: few enough for a CPU's cache."""


class Clusters(NamedTuple):
    """Hold the clusters of `n` lists of tokens; centroids are the means of their members in fp32
    (fp64 for fp64 tokens).
    """

    ids: Int[Tensor, "n s"]
    centroids: Float[Tensor, "n k d"]
    sizes: Int[Tensor, "n k"]


def kmeans_ref(
    x: Float[Tensor, "n s d"], centroids: Float[Tensor, "n k d"], iterations: int
) -> tuple[Int[Tensor, "n s"], Float[Tensor, "n k d"], Int[Tensor, "n k"]]:
    """Return the definition of `kmeans` in plain torch."""
    n, _, d = x.shape
    k = centroids.shape[1]
    wide = centroids.to(_wide(x))
    for _ in range(iterations):
        ids = _nearest(x, wide)
        flat = (ids + k * torch.arange(n, device=x.device)[:, None]).flatten()
        sizes = torch.bincount(flat, minlength=n * k).reshape(n, k)
        sums = wide.new_zeros(n * k, d).index_add_(0, flat, x.to(wide.dtype).reshape(-1, d))
        means = sums.reshape(n, k, d) / sizes.clamp_min(1)[..., None]
        wide = means.where(sizes[..., None] > 0, wide)
    return ids.int(), wide, sizes.int()


def _nearest(x: Float[Tensor, "n s d"], centroids: Float[Tensor, "n k d"]) -> Int[Tensor, "n s"]:
    rounded = centroids.to(x.dtype).to(centroids.dtype)
    squares = rounded.square().sum(-1)[:, None]
    rows = max(1, CHUNK // (x.shape[0] * centroids.shape[1]))
    parts = [
        torch.baddbmm(squares, part.to(centroids.dtype), rounded.mT, alpha=-2).argmin(-1)
        for part in torch.split(x, rows, dim=1)
    ]
    return torch.cat(parts, dim=1)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _shapes(
    x: Tensor, centroids: Tensor, iterations: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape[:2], dtype=torch.int32),
        centroids.new_empty(centroids.shape, dtype=_wide(x)),
        x.new_empty(centroids.shape[:2], dtype=torch.int32),
    )


@custom_op("kmeans", fake=_shapes)
def _kmeans(
    x: Tensor, centroids: Tensor, iterations: int, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, centroids and sizes."""
    chosen = backend_for("kmeans", x, backend=backend)
    if chosen == "torch":
        return kmeans_ref(x, centroids, iterations)
    from skipstep.kernels.kmeans_triton import assign_triton, mean_triton

    wide = centroids.float()
    for _ in range(iterations):
        ids = assign_triton(x, wide.to(x.dtype), upcast_dot(chosen, x.dtype))
        sizes = torch.zeros(centroids.shape[:2], dtype=torch.int32, device=x.device)
        sizes.scatter_add_(1, ids.long(), torch.ones_like(ids))
        wide = mean_triton(x, ids, sizes, wide)
    return ids, wide, sizes


def kmeans(
    x: Float[Tensor, "n s d"],
    k: int,
    *,
    iterations: int = 2,
    init: Float[Tensor, "n k d"] | None = None,
    backend: str | None = None,
) -> Clusters:
    """Return `k` clusters of each of `n` lists of tokens; some may be empty.

    Args:
        init: centroids to start from; None takes `k` evenly spaced tokens.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises:
        ValueError: if `k` is not within 1 and the number of tokens, there is no iteration, `init`
            has another shape, or the backend cannot serve.

    >>> clusters = kmeans(torch.tensor([[[0.0], [1.0], [8.0], [9.0]]]), 2)
    >>> clusters.ids, clusters.centroids.flatten()
    (tensor([[0, 0, 1, 1]], dtype=torch.int32), tensor([0.5000, 8.5000]))
    """
    n, s, d = x.shape
    if not 1 <= k <= s or iterations < 1:
        raise ValueError(
            f"kmeans was asked for {k} clusters of {s} tokens in {iterations} iterations: allowed "
            f"are 1 to {s} clusters and at least one iteration"
        )
    if init is None:
        init = x[:, torch.arange(k, device=x.device) * s // k]
    elif tuple(init.shape) != (n, k, d):
        raise ValueError(
            f"kmeans was given `init` of shape {tuple(init.shape)}: expected {(n, k, d)}, one "
            "centroid per list and cluster"
        )
    return Clusters(*_kmeans(x, init, iterations, backend or "auto"))


def sorted_by_cluster(ids: Int[Tensor, "n s"]) -> Int[Tensor, "n s"]:
    """Return the order that puts the members of each cluster together, each in their order.

    >>> sorted_by_cluster(torch.tensor([[1, 0, 1, 0]]))
    tensor([[1, 3, 0, 2]])
    """
    return ids.argsort(dim=1, stable=True)
