"""Pictures without cameras: where each was taken, found by rendering what the others show.

Analysis by synthesis, after iNeRF (Yen-Chen et al. 2021, arXiv:2012.05877), in the place of the
camera heads of DUSt3R and VGGT:
1. The first picture stands at azimuth 0, ELEVATION degrees above the object; the single-view model
   makes Gaussians of it.
2. The scene is rendered from a grid of directions around it. Of all pictures without a camera the
   one that some direction explains best, by |I - I*| + |A - A*|, stands there; the direction is
   refined on finer grids.
3. The reconstructor of several views makes the scene anew of all pictures that have cameras, and 2
   goes on with the next picture.
4. Each picture but the first is searched once more in what the others show together.

Differs from the paper: a search on grids, as the renderer draws hundreds of views in a second,
where iNeRF descends a gradient from a rough pose. Two angles per picture: cameras are held level,
look at the object from a known distance, with the field of view of `canonical_cameras`.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.cost_volume import CostVolumeGaussianModel, PixelGaussians
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.objects import DISTANCE, FOV
from skipstep.pipelines.splat.single_view import SingleViewGaussianModel

__all__ = ["mismatch", "placed", "search_cameras"]

ELEVATION = 15.0
# Degrees between directions of the first grid, and how often a finer one of half the step follows.
AZIMUTHS, ELEVATIONS, FINER = 15.0, (-10.0, 5.0, 20.0, 35.0), 3

Angles = Float[Tensor, "g 2"]


def placed(angles: Angles, size: int) -> Cameras:
    """Return cameras at (azimuth, elevation) in degrees."""
    return Cameras.around(angles[:, 0], angles[:, 1], radius=DISTANCE, fov=FOV, width=size)


def mismatch(
    scene: Gaussians, cameras: Cameras, pictures: Float[Tensor, "v 4 size size"]
) -> Float[Tensor, "v g"]:
    """Return |I - I*| + |A - A*| of every picture (over white) at every camera."""
    rendering = scene.render(cameras)
    drawn = torch.cat([rendering.rgb, rendering.alpha[..., None]], -1).permute(0, 3, 1, 2)
    weight = drawn.new_tensor([1 / 3, 1 / 3, 1 / 3, 1.0])[:, None, None]
    return torch.stack([((drawn - one).abs() * weight).mean((1, 2, 3)) for one in pictures])


def searched(
    scene: Gaussians, pictures: Float[Tensor, "v 4 size size"]
) -> tuple[int, Float[Tensor, " 2"]]:
    """Return which picture the scene explains best, and from what angles."""
    size = pictures.shape[-1]
    grid = torch.cartesian_prod(torch.arange(0, 360, AZIMUTHS), torch.tensor(ELEVATIONS))
    off = mismatch(scene, placed(grid, size), pictures)
    view = int(off.amin(1).argmin())
    best = grid[off[view].argmin()]
    step = AZIMUTHS / 2
    around = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 2)
    for _ in range(FINER):
        near = best + step * around
        best = near[mismatch(scene, placed(near, size), pictures[view : view + 1])[0].argmin()]
        step /= 2
    return view, best


@torch.no_grad()
def search_cameras(
    pictures: Float[Tensor, "v 4 size size"],
    single: SingleViewGaussianModel,
    several: CostVolumeGaussianModel,
) -> Cameras:
    """Return cameras for square pictures (RGB over white and alpha, 0 to 1) of one object.

    The world has -y as up and the first camera at azimuth 0. Sizes are multiples of 8.
    """
    size, count = pictures.shape[-1], len(pictures)
    angles = torch.tensor([[0.0, ELEVATION]]).repeat(count, 1)

    def scene_of(views: list[int]) -> Gaussians:
        cameras = placed(angles[views], size)
        if len(views) > 1:
            made: Any = several(pictures[None, views], cameras.w2c[None], cameras.K[None])
            return gaussians_of(made)
        c2w = torch.linalg.inv(cameras.w2c[0])
        own = gaussians_of(single(pictures[views], cameras.K))
        return own.transformed(c2w[:3, :3], c2w[:3, 3])

    known, left = [0], list(range(1, count))
    while left:
        view, found = searched(scene_of(known), pictures[left])
        angles[left[view]] = found
        known.append(left.pop(view))
    for view in range(1, count) if count > 2 else ():
        others = [other for other in range(count) if other != view]
        _, angles[view] = searched(scene_of(others), pictures[view : view + 1])
    return placed(angles, size)


def gaussians_of(made: PixelGaussians) -> Gaussians:
    """Return the first scene of a batch without what cannot be seen."""
    names = ("means", "quats", "scales", "opacities", "colours")
    return Gaussians.from_colours(*(getattr(made, name)[0] for name in names)).pruned()
