"""2D Gaussian surfels: flat discs, met by every pixel's ray where they really are.

Huang et al. 2024, "2D Gaussian Splatting" (arXiv:2403.17888). A surfel has a centre p, two unit
tangents t_u, t_v and their scales. With T the rows of K [s_u t_u, s_v t_v, p] in the camera:
  h_u = x T_3 - T_1,   h_v = y T_3 - T_2                                                 Eq. (8)-(9)
  (u, v, 1) ~ h_u x h_v: where the ray of pixel (x, y) meets the disc                      Eq. (10)
  sigma = min(u^2 + v^2, 2 |(x, y) - c|^2) / 2, c the centre's pixel: a floor on the size  Eq. (11)
  z = u T_31 + v T_32 + T_33
and alpha = o exp(-sigma) is composited as for 3D Gaussians (gs_raster.py). The cross product is
affine in (x, y): (U, V, W) = T_1 x T_2 + x T_2 x T_3 + y T_3 x T_1, so that a chunk of splats and a
tile of pixels meet in three matrix products. Depth is that of the meeting, not of the centre.

Differs from the authors' code: plain torch and autograd over tile lists, no Triton kernel; many
views in one call; tile lists from the disc's exact bounding box; no distortion map.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from skipstep.kernels.full_precision import full_precision
from skipstep.kernels.gs_bin import ALPHA_MIN, TileLists, tile_lists
from skipstep.kernels.gs_project import rotation_matrices
from skipstep.kernels.gs_raster import ALPHA_MAX, T_MIN, over, tile_centres, untile

__all__ = ["project_surfels", "rasterize_surfels", "rasterize_surfels_ref"]

TILE, BLOCK = 8, 64
# A meeting nearer than this, in units of the world, is behind the camera.
NEAREST = 1e-4


@full_precision
def project_surfels(
    means: Float[Tensor, "n 3"],
    quats: Float[Tensor, "n 4"],
    scales: Float[Tensor, "n 2"],
    w2c: Float[Tensor, "v 4 4"],
    K: Float[Tensor, "v 3 3"],
) -> tuple[Float[Tensor, "v n 3 3"], Float[Tensor, "v n"]]:
    """Return T of every surfel in every view, and the depths of the centres."""
    rotation, translation = w2c[:, :3, :3], w2c[:, None, :3, 3]
    at = means @ rotation.mT + translation  # [v, n, 3]
    tangents = rotation[:, None] @ (rotation_matrices(quats)[..., :2] * scales[:, None, :])
    T = K[:, None] @ torch.cat([tangents, at[..., None]], -1)
    return T, at[..., 2]


def bounds(
    T: Float[Tensor, "v n 3 3"], reach: Float[Tensor, "v n"]
) -> tuple[Float[Tensor, "v n 2"], Float[Tensor, "v n 2"]]:
    """Return centre and half size of the box around u^2 + v^2 <= reach, in pixels.

    A line l of the picture touches the disc's outline where l T diag(r, r, -1) T^T l = 0, which is
    a quadratic equation for vertical and for horizontal lines. A disc that reaches the plane of the
    camera has no outline: its half size is infinite.
    """
    weights = torch.stack([reach, reach, -torch.ones_like(reach)], -1)[..., None, :]
    Q = (T * weights) @ T.mT
    d = Q[..., 2, 2].clamp_max(-1e-12)
    centre = Q[..., :2, 2] / d[..., None]
    half = (centre.square() - Q.diagonal(dim1=-2, dim2=-1)[..., :2] / d[..., None]).clamp_min(0)
    is_in_front = (Q[..., 2, 2] < -1e-12)[..., None]
    return centre, torch.where(is_in_front, half.sqrt(), torch.inf)


def meetings(
    T: Float[Tensor, "*l k 3 3"], pixels: Float[Tensor, "*l p 2"]
) -> tuple[Float[Tensor, "*l k p"], Float[Tensor, "*l k p"]]:
    """Return sigma and z where the rays of pixels meet surfels; sigma is infinite where none is."""
    T_1, T_2, T_3 = T.unbind(-2)  # [l, k, 3]
    cross = torch.linalg.cross
    affine = torch.stack([cross(T_1, T_2), cross(T_2, T_3), cross(T_3, T_1)], -1)  # [l, k, 3, 3]
    ones = torch.ones_like(pixels[..., :1])
    at = torch.cat([ones, pixels], -1)[..., None, :, :]  # [l, 1, p, 3]
    U, V, W = (at @ affine.mT).unbind(-1)  # [l, k, p]
    is_edge_on = W.abs() < 1e-12
    W = torch.where(is_edge_on, torch.ones_like(W), W)
    u, v = U / W, V / W
    z = u * T_3[..., :1] + v * T_3[..., 1:2] + T_3[..., 2:]
    deep = torch.where(T_3[..., 2:] > NEAREST, T_3[..., 2:], torch.ones_like(T_3[..., 2:]))
    c = torch.stack([T_1[..., 2:], T_2[..., 2:]], -1) / deep[..., None]  # [l, k, 1, 2]
    aside = 2 * (pixels[..., None, :, :] - c).square().sum(-1)
    on_disc = torch.where(is_edge_on | (z <= NEAREST), torch.inf, u * u + v * v)
    # The floor is a blot around the centre, at the centre's depth.
    sigma = torch.minimum(on_disc, aside) / 2
    z = torch.where(on_disc <= aside, z, T_3[..., 2:].expand_as(z))
    return torch.where(T_3[..., 2:] > NEAREST, sigma, torch.inf), z


def composite_surfels(
    T: Float[Tensor, "*l k 3 3"],
    opacities: Float[Tensor, "*l k"],
    features: Float[Tensor, "*l k c"],
    pixels: Float[Tensor, "*l p 2"],
    alpha_max: float,
) -> Float[Tensor, "*l p c_and_2"]:
    """Composite surfels that are sorted front to back: features, depth and the weights' sum."""
    sigma, z = meetings(T, pixels)
    alpha = (opacities[..., None] * torch.exp(-sigma)).clamp_max(alpha_max)
    alpha = torch.where(alpha > ALPHA_MIN, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, -2)
    before = torch.cat([torch.ones_like(after[..., :1, :]), after[..., :-1, :]], -2)
    weights = alpha * before * (after > T_MIN)
    deep = torch.where(weights > 0, weights * z, torch.zeros_like(z)).sum(-2)
    return torch.cat([weights.mT @ features, deep[..., None], weights.sum(-2)[..., None]], -1)


def rasterize_surfels_ref(
    T: Float[Tensor, "v n 3 3"],
    depths: Float[Tensor, "v n"],
    opacities: Float[Tensor, "v n"],
    features: Float[Tensor, "v n c"],
    *,
    width: int,
    height: int,
    background: Float[Tensor, " c"] | None = None,
    alpha_max: float = ALPHA_MAX,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return image, alpha and depth by the definition: every surfel at every pixel."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=T.dtype, device=T.device) + 0.5,
        torch.arange(width, dtype=T.dtype, device=T.device) + 0.5,
        indexing="ij",
    )
    pixels = torch.stack([x, y], -1).reshape(-1, 2)
    views = []
    for view in range(len(T)):
        order = torch.argsort(depths[view].detach(), stable=True)
        views.append(
            composite_surfels(
                T[view, order], opacities[view, order], features[view, order], pixels, alpha_max
            )
        )
    return finished(torch.stack(views).reshape(len(T), height, width, -1), background)


def finished(result: Tensor, background: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Split what was composited; depth is the mean over the weights, 0 where nothing is."""
    alpha = result[..., -1]
    image, alpha = over(result[..., :-2], alpha, background)
    return image, alpha, result[..., -2] / alpha.clamp_min(1e-6)


@full_precision
def rasterize_surfels(
    T: Float[Tensor, "v n 3 3"],
    depths: Float[Tensor, "v n"],
    opacities: Float[Tensor, "v n"],
    features: Float[Tensor, "v n c"],
    *,
    width: int,
    height: int,
    background: Float[Tensor, " c"] | None = None,
    alpha_max: float = ALPHA_MAX,
) -> tuple[
    Float[Tensor, "v height width c"],
    Float[Tensor, "v height width"],
    Float[Tensor, "v height width"],
]:
    """Return the features of all views over the background, alpha, and the depth of what is seen.

    Differentiable in T, opacities and features. Memory for gradients is that of one block of tiles:
    each is computed again in the backward pass.
    """
    if width < 1 or height < 1:
        raise ValueError(
            f"rasterize_surfels was given a picture of {width} x {height}: it needs a pixel"
        )
    lists = surfel_lists(
        T.detach(), depths.detach(), opacities.detach(), width=width, height=height
    )
    flat_T, flat_opacities = T.flatten(0, 1), opacities.flatten()
    flat_features = features.flatten(0, 1)
    centres = tile_centres(lists, T.reshape(-1, 3))
    offset = torch.arange(TILE, dtype=T.dtype, device=T.device) + 0.5 - TILE / 2
    y, x = torch.meshgrid(offset, offset, indexing="ij")
    inside = torch.stack([x, y], -1).reshape(-1, 2)
    counts = lists.counts
    # Tiles of about equal length share a block: little padding.
    order = torch.argsort(counts, descending=True)
    order = order[: int((counts > 0).sum())]
    tiles = features.new_zeros(len(counts), TILE * TILE, features.shape[-1] + 2)
    for block in torch.split(order, BLOCK):
        at = lists.offsets[block, None] + torch.arange(int(counts[block[0]]), device=T.device)
        is_there = at < lists.offsets[block + 1, None]
        rows = lists.ids[at.clamp_max(len(lists.ids) - 1)]
        done = checkpoint(
            composite_surfels,
            flat_T[rows],
            torch.where(is_there, flat_opacities[rows], 0.0),
            flat_features[rows],
            centres[block, None] + inside,
            alpha_max,
            use_reentrant=False,
        )
        tiles = tiles.index_copy(0, block, done)
    return finished(untile(tiles, lists, width=width, height=height), background)


def surfel_lists(
    T: Float[Tensor, "v n 3 3"],
    depths: Float[Tensor, "v n"],
    opacities: Float[Tensor, "v n"],
    *,
    width: int,
    height: int,
) -> TileLists:
    """Return tile lists from boxes: an ellipse around the box stands for the surfel."""
    reach = 2 * torch.log(opacities / ALPHA_MIN).clamp_min(1e-6)
    centre, half = bounds(T, reach)
    deep = T[..., 2, 2].clamp_min(NEAREST)
    blot = T[..., :2, 2] / deep[..., None]
    radius = (reach / 2).sqrt()[..., None]
    far = 4.0 * (width + height)
    low = torch.minimum(centre - half, blot - radius).clamp(-far, far)
    high = torch.maximum(centre + half, blot + radius).clamp(-far, far)
    middle, half = (low + high) / 2, ((high - low) / 2).clamp_min(1e-3)
    # On the box's corners this quadratic form is reach: (2 half^2 / reach)^-1 per axis.
    A, C = (reach / (2 * half[..., axis].square()) for axis in (0, 1))
    conics = torch.stack([A, torch.zeros_like(A), C], -1)
    seen = torch.where(depths > NEAREST, opacities, 0.0)
    return tile_lists(middle, conics, depths, seen, width=width, height=height, tile=TILE)
