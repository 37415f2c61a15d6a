"""Frechet distance of feature distributions (Heusel et al. 2017, arXiv:1706.08500, Eq. 6).

  d^2 = |m_1 - m_2|^2 + Tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2))                                     (1)

Features are pooled EfficientNet-Lite0 vectors projected on the first 256 principal directions of
the real pictures, so this is NOT the FID of the literature (Inception, 2048-d): compare values only
with values of this file, and always beside a real-against-real one, because the estimate is biased
upwards for small samples (Chong & Forsyth 2020, arXiv:1911.07023): equal sample sizes, or no
comparison. Differs from the authors' code: Tr (C_1 C_2)^(1/2) is the sum of singular values of
C_1^(1/2) C_2^(1/2), which needs no square root of a non-symmetric matrix.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Projection", "fit_projection", "frechet_distance"]


@dataclass(frozen=True)
class Projection:
    """Principal directions of a set of features: `apply` returns coordinates along them."""

    mean: Float[Tensor, " c"]
    directions: Float[Tensor, "c k"]

    def apply(self, features: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
        """Return the coordinates of `features` along the directions."""
        return (features.double() - self.mean) @ self.directions


def fit_projection(features: Float[Tensor, "n c"], *, count: int = 256) -> Projection:
    """Return the first `count` principal directions of `features` (fewer if n or c is smaller)."""
    mean = features.double().mean(0)
    directions: Tensor = torch.linalg.svd(features.double() - mean, full_matrices=False).Vh
    return Projection(mean, directions[:count].T.contiguous())


def symmetric_root(matrix: Float[Tensor, "k k"]) -> Float[Tensor, "k k"]:
    """Return the symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def frechet_distance(x: Float[Tensor, "n k"], y: Float[Tensor, "m k"]) -> float:
    """Return the squared Frechet distance between Gaussians fitted to two sets of vectors.

    >>> x = torch.tensor([[0.0], [2.0]])
    >>> round(frechet_distance(x, x + 3), 6)
    9.0
    """
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"sets of shapes {tuple(x.shape)} and {tuple(y.shape)} given, but both must be "
            "[samples, features] with the same features: project both with one Projection"
        )
    if min(len(x), len(y)) < 2:
        raise ValueError("a covariance needs at least 2 samples on either side: pass more pictures")
    x, y = x.double(), y.double()
    width = x.shape[1]
    cov_x, cov_y = torch.cov(x.T).reshape(width, width), torch.cov(y.T).reshape(width, width)
    cross = torch.linalg.svdvals(symmetric_root(cov_x) @ symmetric_root(cov_y)).sum()
    shift = (x.mean(0) - y.mean(0)).square().sum()
    return float(shift + torch.trace(cov_x) + torch.trace(cov_y) - 2 * cross)  # Eq. (1)
