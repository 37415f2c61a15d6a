"""How far a student is from its target, where the squared error is too hard on outliers."""

import math

from jaxtyping import Float
from torch import Tensor

__all__ = ["adaptive", "pseudo_huber"]


def pseudo_huber(
    a: Float[Tensor, " b *size"], b: Float[Tensor, " b *size"], scale: float = 0.01
) -> Float[Tensor, " b"]:
    """Return sqrt(|a - b|^2 + c^2) - c per sample, c = scale sqrt(d) (Song & Dhariwal 2023)."""
    c = scale * math.sqrt(a[0].numel())
    return ((a - b).square().flatten(1).sum(1) + c * c).sqrt() - c


def adaptive(error: Float[Tensor, " b"], floor: float = 1e-2) -> Float[Tensor, " b"]:
    """Return squared errors each divided by itself, no gradient through that (MeanFlow, p = 1)."""
    return error / (error.detach() + floor)
