"""Cameras from points whose places are known.

Procrustes (Umeyama 1991): the similarity that brings points x_i to y_i with weights w_i,
  min sum w_i |y_i - (s R x_i + t)|^2:   U D V^T = svd(sum w_i (y_i - y)(x_i - x)^T),
  R = U diag(1, 1, det(U V^T)) V^T,   s = tr(D diag(1, 1, det)) / sum w_i |x_i - x|^2
Perspective-n-point by orthogonal iteration (Lu, Hager, Mjolsness 2000): with V_i the projection
onto the ray of pixel i, the points y_i = V_i (R x_i + t) on the rays take the place of measured
ones, so that each round is a Procrustes problem without scale; t is optimal for R in closed form:
  t(R) = (sum w_i (1 - V_i))^-1 sum w_i (V_i - 1) R x_i                              Eq. (20)
After half of the rounds weights fall with the distance from the ray, so that points that are wrong
lose their say. Differs from the paper: weights, and the reweighting.
"""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["perspective_n_point", "procrustes", "rotation_angle"]


def procrustes(
    points: Float[Tensor, "n 3"],
    others: Float[Tensor, "n 3"],
    weights: Float[Tensor, " n"],
    *,
    with_scale: bool = False,
) -> tuple[Float[Tensor, "3 3"], Float[Tensor, " 3"], float]:
    """Return rotation, translation and scale that bring `points` to `others`.

    Without `with_scale` the scale is 1. At least 3 points that are not on a line are needed.
    """
    w = (weights / weights.sum())[:, None]
    middle, there = (w * points).sum(0), (w * others).sum(0)
    x, y = points - middle, others - there
    U, D, Vh = torch.linalg.svd((w * y).T @ x)
    sign = D.new_tensor([1.0, 1.0, torch.linalg.det(U @ Vh).sign().item()])
    R = (U * sign) @ Vh
    s = float((D * sign).sum() / (w * x * x).sum()) if with_scale else 1.0
    return R, there - s * (R @ middle), s


def perspective_n_point(
    points: Float[Tensor, "n 3"],
    rays: Float[Tensor, "n 3"],
    weights: Float[Tensor, " n"],
    *,
    start: Float[Tensor, "3 3"] | None = None,
    rounds: int = 60,
) -> Float[Tensor, "4 4"]:
    """Return the pose (world to camera) of a camera that sees `points` along `rays`.

    `rays` are directions in the camera, K^-1 (u, v, 1). Without a `start` of the rotation, all
    points are first taken to be equally far.

    Raises ValueError for fewer than 4 points of positive weight.
    """
    if int((weights > 0).sum()) < 4:
        raise ValueError(f"{int((weights > 0).sum())} points can be trusted: 4 are needed")
    unit = torch.nn.functional.normalize(rays, dim=-1)
    V = unit[:, :, None] * unit[:, None]
    away = torch.eye(3).to(V) - V
    R = procrustes(points, rays, weights)[0] if start is None else start
    w, t = weights, points.new_zeros(3)
    for round_ in range(rounds):
        x = points @ R.T
        t = -torch.linalg.solve(
            (w[:, None, None] * away).sum(0), (w[:, None] * (away @ x[..., None])[..., 0]).sum(0)
        )
        at = x + t
        if round_ >= rounds // 2:
            off = (away @ at[..., None])[..., 0].norm(dim=-1)
            w = weights / (1 + (off / off.median().clamp_min(1e-9)).square())
        R = procrustes(points, (V @ at[..., None])[..., 0], w)[0]
    pose = torch.eye(4).to(points)
    pose[:3, :3], pose[:3, 3] = R, t
    return pose


def rotation_angle(one: Float[Tensor, "3 3"], other: Float[Tensor, "3 3"]) -> float:
    """Return the angle between two rotations in degrees.

    >>> round(rotation_angle(torch.eye(3), torch.diag(torch.tensor([-1.0, -1.0, 1.0]))))
    180
    """
    cosine = ((one.mT @ other).diagonal().sum() - 1) / 2
    return float(torch.rad2deg(torch.arccos(cosine.clamp(-1, 1))))
