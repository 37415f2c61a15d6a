"""Photos to 3D Gaussians in one forward pass: a diffusers pipeline around a reconstructor.

A reconstructor of several views sees their cameras, one of a single picture works in its frame. The
cameras are moved into the model's world before the pass, the Gaussians back after it: the point
that all optical axes come closest to is the origin there, and the cameras are 2.2 from it on
average. So results are in the user's world, whatever its unit.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.capture import ENDINGS, has_alpha, read_pictures, tensor_of
from skipstep.pipelines.splat.cost_volume import CostVolumeGaussianModel
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.objects import DISTANCE, FOV
from skipstep.pipelines.splat.refine import refine
from skipstep.pipelines.splat.single_view import SingleViewGaussianModel
from skipstep.plugins.lifecycle import manager_of

__all__ = [
    "GaussianReconstructionOutput",
    "GaussianReconstructionPipeline",
    "as_tensor",
    "canonical_cameras",
    "load_reconstructor",
]

RECONSTRUCTORS: dict[str, tuple[str, Any]] = {
    "cost-volume": ("cost-volume-v1", CostVolumeGaussianModel),
    "single-view": ("single-view-v1", SingleViewGaussianModel),
}
# A pixel of an opaque picture belongs to the object when it differs this much from the background.
MATTE = 0.03
BACKGROUNDS = {"white": (1.0, 1.0, 1.0), "black": (0.0, 0.0, 0.0)}
# Every view is compared with every other, unless a plugin keeps their number down.
MOST_VIEWS, MOST_PRESSED_VIEWS = 16, 256
FIELDS = ("means", "quats", "scales", "opacities", "colours")


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
    if len(cameras) == 1:
        # One axis meets nothing: its point nearest to the world's origin is the centre.
        centre = centres[0] - (centres[0] @ forward[0]) * forward[0]
    else:
        across = torch.eye(3) - forward[:, :, None] * forward[:, None]
        # The axes of parallel cameras meet nowhere: a little of "near the origin" decides.
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

    def __init__(self, reconstructor: CostVolumeGaussianModel | SingleViewGaussianModel) -> None:
        super().__init__()
        self.register_modules(reconstructor=reconstructor)

    @property
    def views(self) -> range:
        """Return how many pictures a call takes."""
        if isinstance(self.reconstructor, SingleViewGaussianModel):
            return range(1, 2)
        manager = manager_of(self)
        handles = [] if manager is None or manager.is_paused else manager.handles.values()
        pressed = any(getattr(handle.plugin, "many_views", False) for handle in handles)
        return range(2, (MOST_PRESSED_VIEWS if pressed else MOST_VIEWS) + 1)

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
        if views not in self.views:
            raise ValueError(why_not_so_many(views, self.views))
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
        gaussians = self.reconstruct(square, near_cameras)
        gaussians = gaussians.transformed(torch.eye(3), centre, 1 / scale).pruned()
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

    def reconstruct(self, pictures: Float[Tensor, "v 4 size size"], cameras: Cameras) -> Gaussians:
        """Run the reconstructor on pictures over white; the cameras are in the model's world."""
        model = self.reconstructor
        device = next(model.parameters()).device
        inputs = [values[None].to(device) for values in (pictures, cameras.w2c, cameras.K)]
        if isinstance(model, SingleViewGaussianModel):
            result = model(inputs[0][:, 0], inputs[2][:, 0])
        else:
            result = model(*inputs)
        gaussians = Gaussians.from_colours(*(getattr(result, name)[0].cpu() for name in FIELDS))
        if isinstance(model, SingleViewGaussianModel):
            c2w = torch.linalg.inv(cameras.w2c[0])
            gaussians = gaussians.transformed(c2w[:3, :3], c2w[:3, 3])
        return gaussians


def why_not_so_many(views: int, allowed: range) -> str:
    """Say what to do about a wrong number of pictures."""
    if allowed == range(1, 2):
        return (
            f"{views} pictures were given and this model takes 1: use "
            'load_reconstructor("cost-volume") for several'
        )
    message = f"{views} pictures were given: between 2 and {allowed[-1]} of one object are needed"
    if views == 1:
        return f'{message}; load_reconstructor("single-view") takes 1'
    return message if views < 2 else f'{message}; enable_plugin("zpressor") takes more'


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


def load_reconstructor(name: str = "cost-volume") -> Any:
    """Load a shipped reconstructor, trained on procedural objects, without a network.

    "cost-volume" takes 2 to 16 pictures with cameras, "single-view" takes one picture.

    Raises ValueError for another name.
    """
    if name not in RECONSTRUCTORS:
        raise ValueError(
            f"there is no reconstructor {name!r}: choose one of {', '.join(RECONSTRUCTORS)}"
        )
    weights, new = RECONSTRUCTORS[name]
    folder = resources.files("skipstep.pipelines").joinpath("splat/weights")
    with resources.as_file(folder.joinpath(f"{weights}.safetensors")) as path:
        state = load_file(path)
    model = new()
    model.load_state_dict({key: values.float() for key, values in state.items()})
    return model.eval()
