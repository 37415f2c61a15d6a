"""Spherical harmonics: the colour of a Gaussian seen from a direction.

Kerbl et al. 2023 (arXiv:2308.04079): real harmonics up to degree 3, 1, 4, 9 or 16 coefficients per
channel, in the order and with the signs of their files; colour = max(0, 0.5 + sum_k Y_k(d) f_k).
Differs from the authors' code: nothing.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["C0", "colours_to_harmonics", "harmonics_basis", "harmonics_to_colours"]

# 1 / (2 sqrt(pi))
C0 = 0.28209479177387814


def harmonics_basis(d: Float[Tensor, "*batch 3"], count: int) -> Float[Tensor, "*batch k"]:
    """Return the first `count` (1, 4, 9, 16) harmonics at unit directions."""
    if count not in (1, 4, 9, 16):
        raise ValueError(f"{count} harmonics were asked for: 1, 4, 9 or 16 (degree 0 to 3) exist")
    x, y, z = d.unbind(-1)
    xx, yy, zz = x * x, y * y, z * z
    one = math.sqrt(3 / (4 * math.pi))
    two = math.sqrt(15 / (4 * math.pi))
    basis = [torch.full_like(x, C0), -one * y, one * z, -one * x]
    if count > 4:
        basis += [
            two * x * y,
            -two * y * z,
            two / math.sqrt(12) * (2 * zz - xx - yy),
            -two * x * z,
            two / 2 * (xx - yy),
        ]
    if count > 9:
        outer, middle = math.sqrt(35 / (32 * math.pi)), math.sqrt(21 / (32 * math.pi))
        inner = math.sqrt(105 / (4 * math.pi))
        basis += [
            -outer * y * (3 * xx - yy),
            inner * x * y * z,
            -middle * y * (4 * zz - xx - yy),
            math.sqrt(7 / (16 * math.pi)) * z * (2 * zz - 3 * xx - 3 * yy),
            -middle * x * (4 * zz - xx - yy),
            inner / 2 * z * (xx - yy),
            -outer * x * (xx - 3 * yy),
        ]
    return torch.stack(basis[:count], -1)


def harmonics_to_colours(
    sh: Float[Tensor, "n k 3"], d: Float[Tensor, "v n 3"]
) -> Float[Tensor, "v n 3"]:
    """Return the colours of Gaussians seen along unit directions d, at least 0."""
    basis = harmonics_basis(d, sh.shape[1])
    return (torch.einsum("vnk,nkc->vnc", basis, sh) + 0.5).clamp_min(0)


def colours_to_harmonics(colours: Float[Tensor, "n 3"]) -> Float[Tensor, "n 1 3"]:
    """Return harmonics of degree 0 with these colours from everywhere.

    >>> colours_to_harmonics(torch.full((1, 3), 0.5)).tolist()
    [[[0.0, 0.0, 0.0]]]
    """
    return ((colours - 0.5) / C0)[:, None]
