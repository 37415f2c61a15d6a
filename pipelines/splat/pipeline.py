"""Photos to 3D Gaussians in one forward pass: a diffusers pipeline around a reconstructor.

The cameras are moved into the model's world before the pass, the Gaussians back after it: the point
that all optical axes come closest to is the origin there, and the cameras are 2.2 from it on
average. So results are in the user's world, whatever its unit.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from skipstep.kernels.gs_harmonics import colours_to_harmonics
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.capture import ENDINGS, has_alpha, read_pictures, tensor_of
from skipstep.pipelines.splat.cost_volume import CostVolumeGaussianModel
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.objects import DISTANCE, FOV
from skipstep.pipelines.splat.refine import refine

__all__ = [
    "GaussianReconstructionOutput",
    "GaussianReconstructionPipeline",
    "canonical_cameras",
    "load_reconstructor",
]

WEIGHTS = "cost-volume-v1"
# A pixel of an opaque picture belongs to the object when it differs this much from the background.
MATTE = 0.03
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
MOST_VIEWS = 16


@dataclass
class GaussianReconstructionOutput(BaseOutput):  # type: ignore[misc]  # untyped base
    """What one call returns: the scene, the cameras it was made with, and the seconds it took."""

    gaussians: Gaussians
    cameras: Cameras
    seconds: dict[str, float]


def canonical_cameras(views: int, size: int = 64) -> Cameras:
    """Return the cameras that pictures without cameras are taken to have.

    They are evenly around the object, 15 degrees above it, anticlockwise seen from above, 2.2 away
    with a field of view of 49.1 degrees: the middle of what the shipped model was trained with.
    """
    return Cameras.orbit(views, elevation=15, radius=DISTANCE, fov=FOV, width=size)


def into_model_world(cameras: Cameras) -> tuple[Cameras, Float[Tensor, " 3"], float]:
    """Move cameras to look at the origin from 2.2; return the old centre and the scale."""
    forward, centres = cameras.w2c[:, 2, :3], cameras.centres
    across = torch.eye(3) - forward[:, :, None] * forward[:, None]
    # The axes of parallel cameras meet nowhere: a little of "near the first camera" decides.
    system = across.sum(0) + 1e-6 * torch.eye(3)
    centre = torch.linalg.solve(system, (across @ centres[..., None]).sum(0))[:, 0]
    distance = (centres - centre).norm(dim=-1).mean().item()
    in_front = ((centre - centres) * forward).sum(-1)
    if not distance > 0 or bool((in_front <= 0).any()):
        raise ValueError(
            "the cameras do not look at one object: their axes must come together in front of "
            "them; for a scene seen from within use reconstruct_scene"
        )
    scale = DISTANCE / distance
    w2c = cameras.w2c.clone()
    w2c[:, :3, 3] = scale * (w2c[:, :3, 3] + (w2c[:, :3, :3] @ centre))
    return replace(cameras, w2c=w2c), centre, scale


def over_white(
    pictures: Float[Tensor, "v c height width"], background: tuple[float, float, float]
) -> Float[Tensor, "v 4 height width"]:
    """Return RGB over white and alpha; without an alpha channel what differs from `background`."""
    rgb = pictures[:, :3]
    if pictures.shape[1] == 4:
        alpha = pictures[:, 3:]
        return torch.cat([rgb * alpha + 1 - alpha, alpha], 1)
    wall = rgb.new_tensor(background)[:, None, None]
    off = (rgb - wall).abs().amax(1, keepdim=True)
    alpha = ((off - MATTE) / MATTE).clamp(0, 1)
    if float(alpha.mean()) > 0.95:
        raise ValueError(
            "the pictures show no plain background to cut the object from: give RGBA pictures, or "
            "name the colour behind it with background=(r, g, b)"
        )
    return torch.cat([rgb + (1 - alpha) * (1 - wall), alpha], 1)


class GaussianReconstructionPipeline(DiffusionPipeline):  # type: ignore[misc]  # untyped base
    """Turn pictures of one object into 3D Gaussians.

    pipe = GaussianReconstructionPipeline(load_reconstructor())
    pipe(pictures, cameras).gaussians.save("object.html")
    """

    def __init__(self, reconstructor: CostVolumeGaussianModel) -> None:
        super().__init__()
        self.register_modules(reconstructor=reconstructor)

    @torch.no_grad()
    def __call__(
        self,
        images: Any,
        cameras: Cameras | None = None,
        *,
        background: str | tuple[float, float, float] = "white",
        resolution: int = 64,
        refine_steps: int = 0,
        seed: int = 0,
        on_step: Callable[[int, float], bool] | None = None,
    ) -> GaussianReconstructionOutput:
        """Reconstruct.

        Args:
            images: PIL images, a folder of pictures in the order of their names, or a tensor
                [v, 3 or 4, height, width] from 0 to 1. Alpha cuts the object out.
            cameras: Of the images, in their size; None means `canonical_cameras`.
            background: What opaque pictures show behind the object.
            resolution: Size the model works at, a multiple of 8; it was trained at 64.
            refine_steps: Steps of gradient descent on the images afterwards.
            seed: Of the order of views in the refinement.
            on_step: Called with each step of the refinement and its loss; True ends it.

        Raises ValueError when pictures and cameras do not belong together or have no object.
        """
        pictures = as_tensor(images)
        views, _, height, width = pictures.shape
        if not 2 <= views <= MOST_VIEWS:
            raise ValueError(
                f"{views} pictures were given: between 2 and {MOST_VIEWS} of one object are needed"
            )
        if cameras is None:
            cameras = canonical_cameras(views).resized(width, height)
        if len(cameras) != views:
            raise ValueError(f"{views} pictures and {len(cameras)} cameras: give one for each")
        if resolution < 8 or resolution % 8:
            raise ValueError(f"resolution={resolution} must be a positive multiple of 8")
        wall = BACKGROUNDS.get(background) if isinstance(background, str) else background
        if wall is None:
            raise ValueError(
                f"background={background!r}: use white, black or (r, g, b) from 0 to 1"
            )
        began = time.perf_counter()
        full = over_white(pictures, wall)
        square = torch.nn.functional.interpolate(
            full, (resolution, resolution), mode="bilinear", antialias=True, align_corners=False
        ).clamp(0, 1)
        near_cameras, centre, scale = into_model_world(cameras.resized(resolution, resolution))
        device = next(self.reconstructor.parameters()).device
        result = self.reconstructor(
            square[None].to(device),
            near_cameras.w2c[None].to(device),
            near_cameras.K[None].to(device),
        )
        gaussians = Gaussians(
            means=result.means[0].cpu() / scale + centre,
            quats=result.quats[0].cpu(),
            scales=result.scales[0].cpu() / scale,
            opacities=result.opacities[0].cpu(),
            sh=colours_to_harmonics(result.colours[0].cpu()),
        ).pruned()
        seconds = {"reconstruct": time.perf_counter() - began}
        if refine_steps:
            began = time.perf_counter()
            with torch.enable_grad():
                gaussians = refine(
                    gaussians,
                    square if max(width, height) <= resolution else full,
                    cameras.resized(resolution, resolution)
                    if max(width, height) <= resolution
                    else cameras,
                    steps=refine_steps,
                    seed=seed,
                    on_step=on_step,
                )
            seconds["refine"] = time.perf_counter() - began
        return GaussianReconstructionOutput(gaussians, cameras, seconds)


def as_tensor(images: Any) -> Float[Tensor, "v c height width"]:
    """Return pictures of any accepted form as one tensor."""
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] not in (3, 4):
            raise ValueError(
                f"a tensor of shape {tuple(images.shape)}: give [v, 3 or 4, height, width]"
            )
        return images.float()
    if isinstance(images, str | Path):
        files = sorted(path for path in Path(images).iterdir() if path.suffix.lower() in ENDINGS)
        images = read_pictures(files)
    if not isinstance(images, Sequence) or not all(
        isinstance(image, Image.Image) for image in images
    ):
        raise ValueError(
            f"images of type {type(images).__name__}: give PIL images, a folder or a tensor"
        )
    if not images:
        raise ValueError("no pictures were given")
    mode = "RGBA" if any(has_alpha(image) for image in images) else "RGB"
    if len({image.size for image in images}) > 1:
        raise ValueError(
            "the pictures differ in size: make them equal, and their cameras with them"
        )
    return tensor_of([image.convert(mode) for image in images])


def load_reconstructor() -> CostVolumeGaussianModel:
    """Load the shipped reconstructor, trained on procedural objects, without a network."""
    folder = resources.files("skipstep.pipelines").joinpath("splat/weights")
    with resources.as_file(folder.joinpath(f"{WEIGHTS}.safetensors")) as path:
        state = load_file(path)
    model = CostVolumeGaussianModel()
    model.load_state_dict({name: values.float() for name, values in state.items()})
    return cast(CostVolumeGaussianModel, model.eval())
