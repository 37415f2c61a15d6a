"""gsplat's CUDA rasteriser (Ye et al. 2024, arXiv:2409.06765) in the place of ours, where it is.

Both have the same definition: blur of 0.3 pixels, alpha between 1/255 and 0.999, transmittance down
to 1e-4, K in pixels with centres at halves, OpenCV axes, quaternions (w, x, y, z). So all that
changes hands is names. gsplat compiles its kernels with nvcc at the first call; that it draws our
pictures is tested with its own plain torch functions, not on a GPU.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras

if TYPE_CHECKING:
    from skipstep.pipelines.splat.gaussians import Gaussians

__all__ = ["draw_gsplat", "drawn_by"]

NEAR = 0.01


def draw_gsplat(
    gaussians: "Gaussians", cameras: Cameras, channels: dict[str, Tensor], with_depth: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Composite with gsplat: all channels side by side, alpha and mean depth.

    Raises ValueError where gsplat cannot: without CUDA, without the package, for surfels.
    """
    device = gaussians.means.device
    if device.type != "cuda":
        raise ValueError(
            f'backend="gsplat" runs on CUDA alone and the scene is on {device}: move scene and '
            "cameras to a CUDA device, or leave the backend out"
        )
    if importlib.util.find_spec("gsplat") is None:
        raise ValueError('backend="gsplat" needs the package: pip install gsplat')
    rasterization = importlib.import_module("gsplat").rasterization
    return drawn_by(rasterization, gaussians, cameras, channels, with_depth)


def drawn_by(
    rasterization: Any,
    gaussians: "Gaussians",
    cameras: Cameras,
    channels: dict[str, Tensor],
    with_depth: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Composite with a function that takes what `gsplat.rasterization` takes.

    Raises ValueError for surfels, which are another function of gsplat's.
    """
    if gaussians.is_flat:
        raise ValueError('backend="gsplat" draws 3D Gaussians: give solid() of these surfels')
    colours = torch.cat(list(channels.values()), -1)
    image, alpha, _ = rasterization(
        means=gaussians.means,
        quats=gaussians.quats,
        scales=gaussians.scales,
        opacities=gaussians.opacities,
        colors=colours,
        viewmats=cameras.w2c,
        Ks=cameras.K,
        width=cameras.width,
        height=cameras.height,
        near_plane=NEAR,
        render_mode="RGB+ED" if with_depth else "RGB",
    )
    depth = image[..., -1] if with_depth else None
    return image[..., : colours.shape[-1]], alpha[..., 0], depth
