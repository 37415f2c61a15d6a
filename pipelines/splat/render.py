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
from skipstep.pipelines.splat.cameras import Cameras

if TYPE_CHECKING:
    from skipstep.pipelines.splat.gaussians import Gaussians

__all__ = ["NEAR", "OUTPUTS", "Rendering", "render"]

OUTPUTS = ("depth", "normal", "features")
NEAR = 0.01


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
) -> Rendering:
    """Render all views, differentiably.

    `outputs` adds any of "depth" (mean z-depth of what is seen, 0 where nothing is), "normal"
    (mean normal in the world) and "features" (every named feature, composited like colour).

    Raises ValueError for an unknown output.
    """
    if unknown := set(outputs) - set(OUTPUTS):
        raise ValueError(f"unknown outputs {sorted(unknown)}: choose from {', '.join(OUTPUTS)}")
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
    views = len(cameras)
    d = torch.nn.functional.normalize(gaussians.means - cameras.centres[:, None], dim=-1)
    channels = [harmonics_to_colours(gaussians.sh, d)]
    if "depth" in outputs:
        channels.append(depths[..., None])
    if "normal" in outputs:
        channels.append(normals(gaussians, d))
    names = list(gaussians.features) if "features" in outputs else []
    extra = [gaussians.features[name].flatten(1) for name in names]
    channels += [values.expand(views, -1, -1) for values in extra]
    image, alpha = rasterize_gaussians(
        means2d,
        conics,
        depths,
        torch.where(depths > NEAR, gaussians.opacities, 0.0),
        torch.cat(channels, -1),
        width=cameras.width,
        height=cameras.height,
    )
    widths = [part.shape[-1] for part in channels]
    parts = list(torch.split(image, widths, -1))
    rgb = parts.pop(0) + (1 - alpha)[..., None] * image.new_tensor(background)
    covered = alpha.clamp_min(1e-6)
    depth = parts.pop(0)[..., 0] / covered if "depth" in outputs else None
    normal = parts.pop(0) / covered[..., None] if "normal" in outputs else None
    return Rendering(rgb, alpha, depth, normal, dict(zip(names, parts, strict=True)))
