"""Rotating Gaussians: quaternions and spherical harmonics under a rotation of the world.

With q_R the quaternion of R, a splat's q becomes q_R q. Harmonics of each degree mix among each
other; the matrix D with Y(R^T d) = D^T Y(d) is found exactly by evaluating both sides at more
directions than there are harmonics: D^T = pinv(Y(d)) Y(R^T d).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.kernels.gs_harmonics import harmonics_basis

__all__ = ["multiply_quaternions", "quaternion_of", "rotate_harmonics"]


def quaternion_of(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 4"]:
    """Return the unit quaternions (w, x, y, z) of rotation matrices, up to their sign.

    The four squares (w^2, x^2, ...) follow from the diagonal; the largest is safe to divide by.

    >>> quaternion_of(torch.diag(torch.tensor([1.0, -1.0, -1.0]))).tolist()
    [0.0, 1.0, 0.0, 0.0]
    """
    a, b, c, d, e, f, g, h, i = rotation.flatten(-2).unbind(-1)
    entries = [
        *(1 + a + e + i, h - f, c - g, d - b),
        *(h - f, 1 + a - e - i, b + d, c + g),
        *(c - g, b + d, 1 - a + e - i, f + h),
        *(d - b, c + g, f + h, 1 - a - e + i),
    ]
    entry = torch.stack(entries, -1)
    rows = entry.reshape(*entry.shape[:-1], 4, 4)
    best = rows.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    chosen = rows.gather(-2, best.expand(*best.shape[:-1], 4))[..., 0, :]
    return torch.nn.functional.normalize(chosen, dim=-1)


def multiply_quaternions(
    p: Float[Tensor, "*#batch 4"], q: Float[Tensor, "*#batch 4"]
) -> Float[Tensor, "*batch 4"]:
    """Return p q: the rotation q followed by p."""
    a, b, c, d = p.unbind(-1)
    w, x, y, z = q.unbind(-1)
    return torch.stack(
        [
            a * w - b * x - c * y - d * z,
            a * x + b * w + c * z - d * y,
            a * y - b * z + c * w + d * x,
            a * z + b * y - c * x + d * w,
        ],
        -1,
    )


def rotate_harmonics(
    sh: Float[Tensor, "n k 3"], rotation: Float[Tensor, "3 3"]
) -> Float[Tensor, "n k 3"]:
    """Return coefficients that show along R d what the given ones show along d."""
    count = sh.shape[1]
    if count == 1:
        return sh
    generator = torch.Generator().manual_seed(0)
    d = torch.randn(64, 3, generator=generator, dtype=torch.float64)
    d = torch.nn.functional.normalize(d, dim=-1)
    turned = harmonics_basis(d @ rotation.detach().cpu().double(), count)
    mix = torch.linalg.pinv(harmonics_basis(d, count)) @ turned
    turned_sh: Tensor = mix.to(sh) @ sh
    return turned_sh
