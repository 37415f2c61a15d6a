"""Relative L1 distance per sample, the number most cache gates look at.

relative_l1(x, y)[b] = mean|x_b - y_b| / mean|y_b|, accumulated in fp32. IEEE rules are kept on
purpose: 0 / 0 is NaN and x / 0 is infinite, so a caller that tests `distance < threshold` never
skips on a degenerate signal.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["mean_absolute", "mean_absolute_difference", "relative_l1", "relative_l1_ref"]


def mean_absolute(x: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Return mean|x_b| of every sample in fp32."""
    flat = x.reshape(x.shape[0], -1)
    total: Tensor = torch.linalg.vector_norm(flat, ord=1, dim=1, dtype=torch.float32)
    return total / flat.shape[1]


def mean_absolute_difference(
    x: Float[Tensor, "b ..."], y: Float[Tensor, "b ..."]
) -> Float[Tensor, " b"]:
    """Return mean|x_b - y_b| of every sample; the difference is taken in fp32."""
    return mean_absolute(x.float().sub(y))


def relative_l1_ref(x: Float[Tensor, "b ..."], y: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Return the definition: mean|x - y| / mean|y| per sample, in fp32."""
    return mean_absolute_difference(x, y) / mean_absolute(y)


def relative_l1(x: Float[Tensor, "b ..."], y: Float[Tensor, "..."]) -> Float[Tensor, " b"]:
    """Return how far `x` is from `y`, per sample and relative to `y`, in fp32.

    Raises ValueError when the shapes differ: broadcasting would mix samples.

    >>> import torch
    >>> relative_l1(torch.full((2, 4), 3.0), torch.full((2, 4), 2.0))
    tensor([0.5000, 0.5000])
    """
    if x.shape != y.shape or x.ndim == 0:
        raise ValueError(
            f"relative_l1 was given shapes {tuple(x.shape)} and {tuple(y.shape)}: both must be the "
            "same [b, ...]; compare tensors of one resolution and one batch"
        )
    return relative_l1_ref(x, y)
