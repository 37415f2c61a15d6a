"""Rasterisation of projected 3D Gaussians: compositing front to back, with an analytic gradient.

Kerbl et al. 2023 (arXiv:2308.04079). At pixel x, splats k = 1, 2, ... sorted by depth:
  sigma_k = (A dx^2 + 2 B dx dy + C dy^2) / 2,   (dx, dy) = x - mean_k
  alpha_k = min(alpha_max, o_k exp(-sigma_k)), and 0 below 1/255
  T_k     = prod_{j<k} (1 - alpha_j),   w_k = alpha_k T_k while T_{k+1} > 1e-4, then 0 for ever
  image   = sum_k w_k f_k + (1 - sum_k w_k) background,   alpha = sum_k w_k
Backward, with g = dL/d(image, alpha) and gd_k = g . f_k:
  dL/dalpha_k = T_k gd_k - (sum_{j>k} w_j gd_j) / (1 - alpha_k),   dL/df_k = w_k g
  dL/dsigma_k = -alpha_k dL/dalpha_k,   dL/dln o_k = alpha_k dL/dalpha_k   where not clamped
In coordinates of a tile's centre ln o - sigma is a polynomial with monomials
(x^2/2, x y, y^2/2, x, y, 1), so that splats times pixels is one matrix product, and so is its
gradient. Features are any number of channels: colour, depth, normals, language, in one pass.

Differs from the authors' code: lists are walked in chunks by all tiles at once, and a tile leaves
as soon as its last pixel is opaque.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.kernels.dispatch import Backend, backend_for, or_torch
from skipstep.kernels.full_precision import full_precision
from skipstep.kernels.gs_bin import ALPHA_MIN, TileLists, tile_lists

__all__ = [
    "ALPHA_MAX",
    "T_MIN",
    "over",
    "rasterize_gaussians",
    "rasterize_gaussians_ref",
    "tile_centres",
    "untile",
]

ALPHA_MAX = 0.999
T_MIN = 1e-4
# Sizes of the torch path: one chunk of a block of tiles stays in a core's cache.
TILE, CHUNK, BLOCK = 8, 32, 64
# Tile of the Triton kernels.
GPU_TILE = 16
NEVER = -1e4


def rasterize_gaussians_ref(
    means2d: Float[Tensor, "v n 2"],
    conics: Float[Tensor, "v n 3"],
    depths: Float[Tensor, "v n"],
    opacities: Float[Tensor, "v n"],
    features: Float[Tensor, "v n c"],
    *,
    width: int,
    height: int,
    background: Float[Tensor, " c"] | None = None,
    alpha_max: float = ALPHA_MAX,
) -> tuple[Float[Tensor, "v height width c"], Float[Tensor, "v height width"]]:
    """Return image and alpha by the definition: every splat at every pixel, plain autograd."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=means2d.dtype, device=means2d.device) + 0.5,
        torch.arange(width, dtype=means2d.dtype, device=means2d.device) + 0.5,
        indexing="ij",
    )
    pixels = torch.stack([x, y], -1).reshape(-1, 1, 2)
    images, alphas = [], []
    for view in range(len(means2d)):
        order = torch.argsort(depths[view].detach(), stable=True)
        dx, dy = (pixels - means2d[view, order]).unbind(-1)  # [pixels, n]
        A, B, C = conics[view, order].unbind(-1)
        sigma = (A * dx * dx + C * dy * dy) / 2 + B * dx * dy
        image, alpha = composite_ref(
            sigma, opacities[view, order], features[view, order], alpha_max=alpha_max
        )
        images.append(image.reshape(height, width, -1))
        alphas.append(alpha.reshape(height, width))
    return over(torch.stack(images), torch.stack(alphas), background)


def composite_ref(
    sigma: Float[Tensor, "p n"],
    opacities: Float[Tensor, " n"],
    features: Float[Tensor, "#p n c"] | Float[Tensor, "n c"],
    *,
    alpha_max: float,
) -> tuple[Float[Tensor, "p c"], Float[Tensor, " p"]]:
    """Composite splats that are sorted front to back, by the definition."""
    alpha = (opacities * torch.exp(-sigma)).clamp_max(alpha_max)
    alpha = torch.where(alpha > ALPHA_MIN, alpha, torch.zeros_like(alpha))
    after = torch.cumprod(1 - alpha, -1)
    before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], -1)
    weights = alpha * before * (after > T_MIN)
    return (weights[:, None] @ features)[:, 0], weights.sum(-1)


def over(
    image: Float[Tensor, "v height width c"],
    alpha: Float[Tensor, "v height width"],
    background: Float[Tensor, " c"] | None,
) -> tuple[Float[Tensor, "v height width c"], Float[Tensor, "v height width"]]:
    """Put the image over the background."""
    if background is not None:
        image = image + (1 - alpha)[..., None] * background
    return image, alpha


def monomials(tile: int, like: Tensor) -> Float[Tensor, "6 p"]:
    """Return the six monomials at the pixels of a tile, its centre the origin."""
    at = torch.arange(tile, dtype=like.dtype, device=like.device) + 0.5 - tile / 2
    y, x = (values.flatten() for values in torch.meshgrid(at, at, indexing="ij"))
    return torch.stack([x * x / 2, x * y, y * y / 2, x, y, torch.ones_like(x)])


def tile_centres(lists: TileLists, like: Tensor) -> Float[Tensor, "lists 2"]:
    """Return the pixel coordinates of the centre of every list's tile."""
    inside = torch.arange(len(lists.counts), device=like.device) % (lists.rows * lists.columns)
    down = torch.div(inside, lists.columns, rounding_mode="floor")
    return (torch.stack([inside % lists.columns, down], -1) + 0.5).to(like.dtype) * lists.tile


class Composite(torch.autograd.Function):
    """Tiles of weighted feature sums; inputs are flat over views, ln o stands for the opacity."""

    @staticmethod
    def forward(
        ctx: Any, splats: Tensor, features: Tensor, lists: TileLists, alpha_max: float
    ) -> Tensor:
        """Return [lists, p, c] from splats [m, 6] = (x, y, A, B, C, ln o) and features [m, c]."""
        counts, mono = lists.counts, monomials(lists.tile, splats)
        centres = tile_centres(lists, splats)
        out = splats.new_zeros(len(counts), mono.shape[1], features.shape[1])
        T = splats.new_ones(len(counts), mono.shape[1])
        steps = torch.arange(CHUNK, device=splats.device)
        saved: list[tuple[Tensor, ...]] = []
        active = counts.nonzero()[:, 0]
        start = 0
        while len(active):
            for block in torch.split(active, BLOCK):
                at = lists.offsets[block, None] + start + steps  # [t, k]
                inside = at < lists.offsets[block + 1, None]
                rows = lists.ids[at.clamp_max_(len(lists.ids) - 1)]
                coefficients, local = local_polynomials(splats[rows], centres[block], inside)
                alpha = (coefficients @ mono).exp_().clamp_max_(alpha_max)  # [t, k, p]
                torch.threshold_(alpha, ALPHA_MIN, 0.0)
                after = 1 - alpha
                first = T[block]
                after[:, 0] *= first
                after = torch.cumprod(after, 1)
                before = torch.cat([first[:, None], after[:, :-1]], 1)
                T[block] = after[:, -1]
                if bool(after[:, -1].min() <= T_MIN):
                    alpha *= after > T_MIN
                weights = alpha * before
                chosen = features[rows]
                out[block] += weights.mT @ chosen
                if any(ctx.needs_input_grad):
                    saved.append((block, rows, inside, coefficients, local, alpha, before, chosen))
            start += CHUNK
            active = active[(counts[active] > start) & (T[active].amax(1) > T_MIN)]
        ctx.saved, ctx.mono, ctx.alpha_max = saved, mono, alpha_max
        ctx.sizes = splats.shape, features.shape
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """Walk the chunks back to front and carry what lies behind: sum_{j>k} w_j gd_j."""
        g = gradients[0]
        mono, alpha_max = ctx.mono, ctx.alpha_max
        behind = g.new_zeros(g.shape[:2])
        of_splats, of_features = (g.new_zeros(shape) for shape in ctx.sizes)
        for block, rows, inside, coefficients, local, alpha, before, chosen in reversed(ctx.saved):
            g_block = g[block]  # [t, p, c]
            gd = chosen @ g_block.mT  # [t, k, p]
            weights = alpha * before
            of_chosen = weights @ g_block
            through = torch.cumsum(weights.mul_(gd), 1)
            total = behind[block] + through[:, -1]
            suffix = total[:, None] - through
            behind[block] = total
            q = gd.mul_(before).sub_(suffix.div_(1 - alpha)).mul_(alpha)
            q.masked_fill_(alpha >= alpha_max, 0.0)
            of_coefficients = q @ mono.T
            of_local = local_polynomials_backward(coefficients, local, of_coefficients)
            of_local *= inside[..., None]
            of_chosen *= inside[..., None]
            of_splats.index_add_(0, rows.flatten(), of_local.flatten(0, 1))
            of_features.index_add_(0, rows.flatten(), of_chosen.flatten(0, 1))
        return of_splats, of_features, None, None


def local_polynomials(
    splats: Float[Tensor, "t k 6"], centres: Float[Tensor, "t 2"], inside: Tensor
) -> tuple[Float[Tensor, "t k 6"], Float[Tensor, "t k 2"]]:
    """Return ln o - sigma as a polynomial around each tile's centre, and the means from there."""
    _, _, A, B, C, log_opacity = splats.unbind(-1)
    local = splats[..., :2] - centres[:, None]
    x, y = local.unbind(-1)
    e, f = A * x + B * y, B * x + C * y
    constant = torch.where(inside, log_opacity - (e * x + f * y) / 2, NEVER)
    return torch.stack([-A, -B, -C, e, f, constant], -1), local


def local_polynomials_backward(
    coefficients: Float[Tensor, "t k 6"], local: Float[Tensor, "t k 2"], g: Float[Tensor, "t k 6"]
) -> Float[Tensor, "t k 6"]:
    """Chain the gradient of `local_polynomials` back to (x, y, A, B, C, ln o)."""
    A, B, C, e, f, _ = coefficients.unbind(-1)
    x, y = local.unbind(-1)
    gA, gB, gC, ge, gf, g1 = g.unbind(-1)
    ge, gf = ge - g1 * x / 2, gf - g1 * y / 2
    gx = -ge * A - gf * B - g1 * e / 2
    gy = -ge * B - gf * C - g1 * f / 2
    return torch.stack([gx, gy, ge * x - gA, ge * y + gf * x - gB, gf * y - gC, g1], -1)


def untile(
    tiles: Float[Tensor, "lists p c"], lists: TileLists, *, width: int, height: int
) -> Float[Tensor, "v height width c"]:
    """Put tiles together to views and cut what hangs over the border."""
    size = lists.tile
    grid = tiles.reshape(-1, lists.rows, lists.columns, size, size, tiles.shape[-1])
    image = grid.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return image[:, :height, :width]


@full_precision
def rasterize_gaussians(
    means2d: Float[Tensor, "v n 2"],
    conics: Float[Tensor, "v n 3"],
    depths: Float[Tensor, "v n"],
    opacities: Float[Tensor, "v n"],
    features: Float[Tensor, "v n c"],
    *,
    width: int,
    height: int,
    background: Float[Tensor, " c"] | None = None,
    alpha_max: float = ALPHA_MAX,
    backend: str | None = None,
) -> tuple[Float[Tensor, "v height width c"], Float[Tensor, "v height width"]]:
    """Return the features of all views, composited over the background, and alpha.

    Differentiable in everything but the depths, which only sort. A splat that must not be seen,
    as behind the camera, gets opacity 0. `backend`: "torch", "triton" or "interpret"; None chooses
    (`kernels.dispatch`).
    """
    if width < 1 or height < 1:
        raise ValueError(
            f"rasterize_gaussians was given a picture of {width} x {height}: it needs a pixel"
        )
    chosen = backend_for(
        "rasterize_gaussians", means2d, features, backend=backend, dtypes=(torch.float32,)
    )
    lists = tile_lists(
        *(values.detach() for values in (means2d, conics, depths, opacities)),
        width=width,
        height=height,
        tile=TILE if chosen == "torch" else GPU_TILE,
    )
    log_opacities = torch.log(opacities.clamp_min(ALPHA_MIN / 2))
    splats = torch.cat([means2d, conics, log_opacities[..., None]], -1).flatten(0, 1)
    # Alpha is the sum of the weights: one more feature that is always 1.
    ones = torch.ones_like(features[..., :1])
    flat = torch.cat([features, ones], -1).flatten(0, 1)
    tiles = composite(splats, flat, lists, alpha_max, chosen)
    result = untile(tiles, lists, width=width, height=height)
    return over(result[..., :-1], result[..., -1], background)


def composite(
    splats: Float[Tensor, "m 6"],
    features: Float[Tensor, "m c"],
    lists: TileLists,
    alpha_max: float,
    backend: Backend,
) -> Float[Tensor, "lists p c"]:
    """Composite all lists on the chosen backend."""

    def plain() -> Tensor:
        tiles: Tensor = Composite.apply(splats, features, lists, alpha_max)  # type: ignore[no-untyped-call]  # torch's
        return tiles

    def kernel() -> Tensor:
        from skipstep.kernels.gs_raster_triton import MOST_CHANNELS, CompositeTriton

        groups = [
            CompositeTriton.apply(splats, part, lists, alpha_max, T_MIN)  # type: ignore[no-untyped-call]  # torch's
            for part in torch.split(features, MOST_CHANNELS, -1)
        ]
        return torch.cat(groups, -1)

    if backend == "torch":
        return plain()
    return or_torch("rasterize_gaussians", splats.device, kernel, plain)
