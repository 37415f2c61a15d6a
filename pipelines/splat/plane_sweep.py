"""Dense Gaussians of a real scene from posed photographs alone: no network, no matched points.

Plane sweeping (Collins 1996): for every pixel of every view, planes of depth between near and far,
evenly spaced in 1/z, are compared with the neighbouring views; the winner is the plane with the
smallest mean colour difference over windows of 3 x 3 pixels. A pixel becomes a Gaussian of its own
size when its winner is clear: the difference is small, and the views that see the point agree that
it is not hidden behind what they saw (its depth there is within 10 % of theirs).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.capture import Capture
from skipstep.pipelines.splat.cost_volume import pixel_rays, sweep
from skipstep.pipelines.splat.gaussians import Gaussians

__all__ = [
    "agreement",
    "depth_range",
    "gaussians_of_pixels",
    "neighbours",
    "sweep_depths",
    "swept_gaussians",
    "trusted_depths",
]

NEIGHBOURS, PLANES = 4, 64


def depth_range(cameras: Cameras) -> tuple[float, float]:
    """Return the depths where a point moves by a third of the picture and by a pixel.

    That is, between a view and its median neighbour: nearer points have left the other picture,
    farther ones do not move enough to be measured.
    """
    between = torch.cdist(cameras.centres, cameras.centres)
    nearest = torch.tensor(neighbours(cameras, NEIGHBOURS))[:, 1:]
    baseline = between.gather(1, nearest).median().item()
    if baseline == 0:
        raise ValueError("all cameras stand at one place: depth cannot be measured")
    moved = cameras.K[:, 0, 0].median().item() * baseline
    return moved / (cameras.width / 3), moved


def neighbours(cameras: Cameras, count: int) -> list[list[int]]:
    """Return for each view the nearest others that look the same way, itself first."""
    distance = torch.cdist(cameras.centres, cameras.centres)
    agree = cameras.w2c[:, 2, :3] @ cameras.w2c[:, 2, :3].T
    distance = distance + 1e6 * (agree < 0.5) - 1e9 * torch.eye(len(cameras))
    order: list[list[int]] = distance.argsort(-1)[:, : count + 1].tolist()
    return order


def sweep_depths(
    capture: Capture, *, near: float, far: float, planes: int = PLANES
) -> tuple[Float[Tensor, "v height width"], Float[Tensor, "v height width"]]:
    """Return the depth of every pixel and the colour difference there."""
    z = 1 / torch.linspace(1 / near, 1 / far, planes)
    alpha = torch.ones_like(capture.pictures[:, :1])
    pictures = torch.cat([capture.pictures[:, :3], alpha], 1)
    nearest = neighbours(capture.cameras, NEIGHBOURS)
    _, dif = sweep(
        pictures[None],
        capture.cameras.w2c[None],
        capture.cameras.K[None],
        z,
        others=[list(row) for row in zip(*nearest, strict=True)][1:],
    )
    best = torch.nn.functional.avg_pool2d(dif[0], 3, 1, 1).min(1)
    return z[best.indices], best.values


def agreement(
    depths: Float[Tensor, "v height width"], cameras: Cameras
) -> Float[Tensor, "v height width"]:
    """Return how many neighbours have a pixel's point at about its own depth."""
    o, d = pixel_rays(cameras.w2c[None], cameras.K[None], cameras.height, cameras.width)
    points = o[0][:, None, None] + d[0] * depths[..., None]
    half = torch.tensor([cameras.width / 2, cameras.height / 2])
    votes = torch.zeros_like(depths)
    for view, group in enumerate(neighbours(cameras, NEIGHBOURS)):
        others = group[1:]
        P = cameras.K[others] @ cameras.w2c[others, :3]
        q = torch.einsum("vij,hwj->vhwi", P[..., :3], points[view]) + P[:, None, None, :, 3]
        deep = q[..., 2]
        at = q[..., :2] / deep.clamp_min(1e-6)[..., None] / half - 1
        seen = torch.nn.functional.grid_sample(
            depths[others, None], at, mode="nearest", align_corners=False
        )[:, 0]
        votes[view] = ((seen - deep).abs() < 0.1 * deep).sum(0)
    return votes


def trusted_depths(
    capture: Capture, *, near: float, far: float, most_difference: float = 0.08
) -> tuple[Float[Tensor, "v height width"], Bool[Tensor, "v height width"]]:
    """Return the depth of every pixel and where it can be trusted: two views agree on it.

    Of two photographs there is one other view, and it decides.
    """
    depths, differences = sweep_depths(capture, near=near, far=far)
    votes = agreement(depths, capture.cameras)
    return depths, (differences < most_difference) & (votes >= min(2, len(capture) - 1))


@torch.no_grad()
def swept_gaussians(
    capture: Capture, *, near: float, far: float, kept: list[int] | None = None
) -> Gaussians:
    """Return one Gaussian per trusted pixel, as large as the pixel at its depth.

    `kept` names the views whose pixels become Gaussians, by default all; the others vote only.
    """
    depths, is_trusted = trusted_depths(capture, near=near, far=far)
    if kept is None:
        return gaussians_of_pixels(capture, depths, is_trusted)
    return gaussians_of_pixels(capture[kept], depths[kept], is_trusted[kept])


def gaussians_of_pixels(
    capture: Capture,
    depths: Float[Tensor, "v height width"],
    chosen: Bool[Tensor, "v height width"],
) -> Gaussians:
    """Return a Gaussian for every chosen pixel at its depth, as large as the pixel there."""
    cameras = capture.cameras
    o, d = pixel_rays(cameras.w2c[None], cameras.K[None], cameras.height, cameras.width)
    points = o[0][:, None, None] + d[0] * depths[..., None]
    size = (0.7 * depths / cameras.K[:, 0, 0, None, None])[chosen]
    return Gaussians.from_colours(
        points[chosen],
        torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(len(size), 1),
        size[:, None].repeat(1, 3),
        torch.full_like(size, 0.5),
        capture.pictures[:, :3].permute(0, 2, 3, 1)[chosen],
    )
