"""Few photographs of a place: what belongs to one segment of a picture lies on one smooth surface.

After CoherentGS (Paliwal et al. 2024, arXiv:2403.19495). With 3 to 6 photographs Gaussians can
explain every one of them at wrong depths. Two things hold them together:
1. Start. Every pixel has one Gaussian on its ray. Depth that no neighbour confirms is taken from
   the pixel's segment, on the plane 1/z = a x + b y + c through its trusted pixels; of a segment
   that has too few, nothing is known and nothing is made.
2. Penalty on the rendered depth z of the views, over neighbouring pixels p, q of one segment:
     L_coherent = strength mean |ln z_p - ln z_q|
Segments are clusters of (colour, place), by k-means.

Differs from the authors' code: depth comes from a plane sweep, not from a monocular network; the
segments and their planes stand for its decoder of smooth depth residuals; Gaussians leave their
rays during refinement; no term of optical flow, whose place the sweep's agreement takes.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from skipstep.kernels.kmeans import kmeans
from skipstep.pipelines.splat.capture import Capture
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.plane_sweep import gaussians_of_pixels, trusted_depths
from skipstep.pipelines.splat.render import Rendering

__all__ = ["Penalty", "coherence", "coherent_gaussians", "filled", "segments"]

Penalty = Callable[[list[int], Rendering], Tensor]

# Clusters per side of a view, and what a colour difference of 1 counts in widths of the picture.
PER_SIDE, COLOUR = 8, 1.0
# A plane needs this many trusted pixels; its slopes are held back by this much.
FEWEST, RIDGE = 12, 1e-2
# Rendered depth counts where this much of a pixel is covered.
COVERED = 0.5


def segments(
    pictures: Float[Tensor, "v c height width"], per_side: int = PER_SIDE
) -> Int[Tensor, "v height width"]:
    """Return the segment of every pixel: k-means of colour and place, view by view.

    It starts from a grid of `per_side` x `per_side` pixels.
    """
    v, _, height, width = pictures.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([x, y]).to(pictures) / width
    tokens = torch.cat([COLOUR * pictures[:, :3], place.expand(v, -1, -1, -1)], 1)
    middle = (torch.arange(per_side) + 0.5) / per_side
    rows, columns = (middle * height).long(), (middle * width).long()
    seeds = tokens[:, :, rows][..., columns].flatten(2).mT
    ids = kmeans(tokens.flatten(2).mT.contiguous(), per_side**2, init=seeds, iterations=8).ids
    return ids.long().reshape(v, height, width)


def filled(
    depth: Float[Tensor, "height width"],
    is_trusted: Bool[Tensor, "height width"],
    segment: Int[Tensor, "height width"],
) -> tuple[Float[Tensor, "height width"], Bool[Tensor, "height width"]]:
    """Return depth with what is not trusted taken from its segment's plane, and where it is known.

    A plane is kept within the depths that its own trusted pixels span.
    """
    height, width = depth.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x / width, y / width, torch.ones_like(x)], -1).to(depth)
    result, known = depth.clone(), is_trusted.clone()
    for one in range(int(segment.max()) + 1):
        inside = segment == one
        trusted = inside & is_trusted
        if int(trusted.sum()) < FEWEST:
            continue
        A, disparity = places[trusted], 1 / depth[trusted]
        middle, level = A.mean(0), disparity.median()
        off = A[:, :2] - middle[:2]
        ridge = RIDGE * len(A) * torch.eye(2).to(A)
        slope = torch.linalg.solve(off.T @ off + ridge, off.T @ (disparity - level))
        rest = inside & ~is_trusted
        plane = level + (places[rest][:, :2] - middle[:2]) @ slope
        result[rest] = 1 / plane.clamp(disparity.min(), disparity.max())
        known |= rest
    return result, known


@torch.no_grad()
def coherent_gaussians(capture: Capture, *, near: float, far: float) -> Gaussians:
    """Return one Gaussian for every pixel whose depth its neighbours or its segment know."""
    depths, is_trusted = trusted_depths(capture, near=near, far=far)
    ids = segments(capture.pictures)
    views = [
        filled(*each)
        for each in zip(depths.unbind(), is_trusted.unbind(), ids.unbind(), strict=True)
    ]
    known = torch.stack([view[1] for view in views])
    return gaussians_of_pixels(capture, torch.stack([view[0] for view in views]), known)


def coherence(pictures: Float[Tensor, "v c height width"], strength: float) -> Penalty:
    """Return L_coherent as a function of the views drawn and their rendering, with its depth."""
    ids = segments(pictures)
    down, right = ids[:, 1:] == ids[:, :-1], ids[:, :, 1:] == ids[:, :, :-1]

    def penalty(views: list[int], rendering: Rendering) -> Tensor:
        if rendering.depth is None:
            raise ValueError("coherence needs the depth: render with outputs=('depth',)")
        ln_z = torch.log(rendering.depth.clamp_min(1e-6))
        covered = rendering.alpha > COVERED
        below = down[views] & covered[:, 1:] & covered[:, :-1]
        beside = right[views] & covered[:, :, 1:] & covered[:, :, :-1]
        total = ((ln_z[:, 1:] - ln_z[:, :-1]).abs() * below).sum()
        total = total + ((ln_z[:, :, 1:] - ln_z[:, :, :-1]).abs() * beside).sum()
        return strength * total / (below.sum() + beside.sum()).clamp_min(1)

    return penalty
