"""Projection of 3D Gaussians onto image planes (EWA splatting).

Kerbl et al. 2023 (arXiv:2308.04079). A camera is w2c = [R|t] and K in pixels; x right, y down,
z forward; the centre of pixel (i, j) is (i + 0.5, j + 0.5). With x = R mean + t and the Jacobian J
of the pinhole projection at x:
  Sigma' = J R Sigma R^T J^T + blur I,   Sigma = Q S S Q^T,   conic = Sigma'^-1
x / z and y / z in J are clamped to 15 % of the image beyond its border, which keeps splats beside
the camera from filling the picture.

Differs from the authors' code: many views in one call; blur is an option; plain autograd.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.kernels.full_precision import full_precision

__all__ = ["project_factors", "project_gaussians", "rotation_matrices"]

BORDER = 0.15


def rotation_matrices(quats: Float[Tensor, "*batch 4"]) -> Float[Tensor, "*batch 3 3"]:
    """Return the rotations of quaternions (w, x, y, z), which need not have unit length.

    >>> rotation_matrices(torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    w, x, y, z = torch.nn.functional.normalize(quats, dim=-1).unbind(-1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, -1).reshape(*quats.shape[:-1], 3, 3)


@full_precision
def project_gaussians(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 3"],
    w2c: Float[Tensor, "v 4 4"],
    K: Float[Tensor, "v 3 3"],
    *,
    width: int,
    height: int,
    near: float = 0.01,
    blur: float = 0.3,
) -> tuple[Float[Tensor, "v n 2"], Float[Tensor, "v n 3"], Float[Tensor, "v n"]]:
    """Return pixel means, conics (A, B, C of A dx^2 + 2 B dx dy + C dy^2) and depths.

    A depth below `near` means behind the camera: the other two values are then finite but void.
    """
    factors = rotation_matrices(quats) * scales[:, None, :]
    return project_factors(means, factors, w2c, K, width=width, height=height, near=near, blur=blur)


@full_precision
def project_factors(
    means: Float[Tensor, "n 3"],
    factors: Float[Tensor, "n 3 3"],
    w2c: Float[Tensor, "v 4 4"],
    K: Float[Tensor, "v 3 3"],
    *,
    width: int,
    height: int,
    near: float = 0.01,
    blur: float = 0.3,
) -> tuple[Float[Tensor, "v n 2"], Float[Tensor, "v n 3"], Float[Tensor, "v n"]]:
    """Do the same for any factor M of the covariance, Sigma = M M^T, as Cholesky's."""
    rotation, translation = w2c[:, :3, :3], w2c[:, None, :3, 3]
    x, y, z = (means @ rotation.mT + translation).unbind(-1)  # [v, n]
    fx, fy, cx, cy = (K[:, i, j, None] for i, j in ((0, 0), (1, 1), (0, 2), (1, 2)))
    iz = 1 / z.clamp_min(near)
    u, v = x * iz, y * iz
    border_x, border_y = BORDER * width / fx, BORDER * height / fy
    tu = torch.minimum(torch.maximum(u, -cx / fx - border_x), (width - cx) / fx + border_x)
    tv = torch.minimum(torch.maximum(v, -cy / fy - border_y), (height - cy) / fy + border_y)
    M = rotation[:, None] @ factors  # [v, n, 3, 3]
    r0 = (fx * iz)[..., None] * (M[..., 0, :] - tu[..., None] * M[..., 2, :])
    r1 = (fy * iz)[..., None] * (M[..., 1, :] - tv[..., None] * M[..., 2, :])
    c00 = (r0 * r0).sum(-1) + blur
    c01 = (r0 * r1).sum(-1)
    c11 = (r1 * r1).sum(-1) + blur
    inverse = 1 / (c00 * c11 - c01 * c01).clamp_min(1e-10)
    conics = torch.stack([c11 * inverse, -c01 * inverse, c00 * inverse], -1)
    return torch.stack([fx * u + cx, fy * v + cy], -1), conics, z
