"""Render Gaussians: colour, alpha, depth, normals and features of many views in one pass."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from skipstep.kernels.gs_harmonics import harmonics_to_colours
from skipstep.kernels.gs_project import project_gaussians, rotation_matrices
from skipstep.kernels.gs_raster import rasterize_gaussians
from skipstep.kernels.gs_surfel import project_surfels, rasterize_surfels
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gsplat_backend import draw_gsplat

if TYPE_CHECKING:
    from skipstep.pipelines.splat.gaussians import Gaussians

__all__ = ["NEAR", "OUTPUTS", "Rendering", "draw_projected", "render"]

OUTPUTS = ("depth", "normal", "features")
BACKENDS = (None, "gsplat")
NEAR = 0.01
FEATURE = "feature "


@dataclass(frozen=True)
class Rendering:
    """Pictures of all views; what was not asked for is None."""

    rgb: Float[Tensor, "v height width 3"]
    alpha: Float[Tensor, "v height width"]
    depth: Float[Tensor, "v height width"] | None = None
    normal: Float[Tensor, "v height width 3"] | None = None
    features: dict[str, Tensor] = field(default_factory=dict)

    def pictures(self) -> list[Image.Image]:
        """Return the views as PIL images."""
        values = (self.rgb.detach().clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()
        return [Image.fromarray(view) for view in values]


def normals(gaussians: "Gaussians", d: Float[Tensor, "v n 3"]) -> Float[Tensor, "v n 3"]:
    """Return each splat's thinnest axis in the world, turned towards the camera."""
    axes = rotation_matrices(gaussians.quats).mT  # [n, axis, 3]
    if gaussians.is_flat:
        normal = axes[:, 2]
    else:
        thinnest = gaussians.scales.argmin(-1)
        normal = axes[torch.arange(len(axes), device=axes.device), thinnest]
    away = (normal * d).sum(-1, keepdim=True) > 0
    return torch.where(away, -normal, normal)


def render(
    gaussians: "Gaussians",
    cameras: Cameras,
    *,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    outputs: tuple[str, ...] = (),
    backend: str | None = None,
) -> Rendering:
    """Render all views, differentiably.

    `outputs` adds any of "depth" (mean z-depth of what is seen, 0 where nothing is), "normal"
    (mean normal in the world) and "features" (every named feature, composited like colour).
    `backend="gsplat"` draws 3D Gaussians with gsplat's CUDA kernels (gsplat_backend.py); None is
    ours, Triton on a GPU and plain torch elsewhere.

    Raises ValueError for an unknown output or backend, and where gsplat cannot draw.
    """
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: None is ours, the other one is 'gsplat'")
    if unknown := set(outputs) - set(OUTPUTS):
        raise ValueError(f"unknown outputs {sorted(unknown)}: choose from {', '.join(OUTPUTS)}")
    views = len(cameras)
    d = torch.nn.functional.normalize(gaussians.means - cameras.centres[:, None], dim=-1)
    channels = {"rgb": harmonics_to_colours(gaussians.sh, d)}
    if "normal" in outputs:
        channels["normal"] = normals(gaussians, d)
    if "features" in outputs:
        extra = {name: values.flatten(1) for name, values in gaussians.features.items()}
        channels |= {FEATURE + name: values.expand(views, -1, -1) for name, values in extra.items()}
    if backend == "gsplat":
        image, alpha, depth = draw_gsplat(gaussians, cameras, channels, "depth" in outputs)
        maps = apart(image, channels)
    else:
        draw = draw_flat if gaussians.is_flat else draw_solid
        maps, alpha, depth = draw(gaussians, cameras, channels, "depth" in outputs)
    rgb = maps["rgb"] + (1 - alpha)[..., None] * alpha.new_tensor(background)
    normal = maps["normal"] / alpha.clamp_min(1e-6)[..., None] if "normal" in maps else None
    features = {
        name.removeprefix(FEATURE): values
        for name, values in maps.items()
        if name.startswith(FEATURE)
    }
    return Rendering(rgb, alpha, depth, normal, features)


Channels = dict[str, Tensor]


def draw_solid(
    gaussians: "Gaussians", cameras: Cameras, channels: Channels, with_depth: bool
) -> tuple[Channels, Tensor, Tensor | None]:
    """Composite 3D Gaussians: maps by name, alpha, and the mean depth of their centres."""
    means2d, conics, depths = project_gaussians(
        gaussians.means,
        gaussians.quats,
        gaussians.scales,
        cameras.w2c,
        cameras.K,
        width=cameras.width,
        height=cameras.height,
        near=NEAR,
    )
    return draw_projected(
        means2d, conics, depths, gaussians.opacities, cameras, channels, with_depth
    )


def draw_projected(
    means2d: Float[Tensor, "v n 2"],
    conics: Float[Tensor, "v n 3"],
    depths: Float[Tensor, "v n"],
    opacities: Float[Tensor, " n"],
    cameras: Cameras,
    channels: Channels,
    with_depth: bool,
) -> tuple[Channels, Tensor, Tensor | None]:
    """Composite projected splats."""
    if with_depth:
        channels = {**channels, "depth": depths[..., None]}
    image, alpha = rasterize_gaussians(
        means2d,
        conics,
        depths,
        torch.where(depths > NEAR, opacities, 0.0),
        torch.cat(list(channels.values()), -1),
        width=cameras.width,
        height=cameras.height,
    )
    maps = apart(image, channels)
    depth = maps.pop("depth")[..., 0] / alpha.clamp_min(1e-6) if with_depth else None
    return maps, alpha, depth


def draw_flat(
    gaussians: "Gaussians", cameras: Cameras, channels: Channels, with_depth: bool
) -> tuple[Channels, Tensor, Tensor | None]:
    """Composite surfels: maps by name, alpha, and the mean depth where rays meet them."""
    T, depths = project_surfels(
        gaussians.means, gaussians.quats, gaussians.scales, cameras.w2c, cameras.K
    )
    image, alpha, depth = rasterize_surfels(
        T,
        depths,
        torch.where(depths > NEAR, gaussians.opacities, 0.0),
        torch.cat(list(channels.values()), -1),
        width=cameras.width,
        height=cameras.height,
    )
    return apart(image, channels), alpha, depth if with_depth else None


def apart(image: Float[Tensor, "v height width c"], channels: Channels) -> Channels:
    """Split a picture into its maps."""
    widths = [part.shape[-1] for part in channels.values()]
    return dict(zip(channels, torch.split(image, widths, -1), strict=True))
