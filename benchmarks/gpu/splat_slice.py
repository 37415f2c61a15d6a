"""The splat slice: the renderer at the sizes of scenes and of feed-forward models, beside gsplat.

Each unit times the forward pass and forward with backward, projection and tile lists included, with
every backend that this machine has: Triton, plain torch on the same device, and gsplat's CUDA
kernels where they are installed and built. What cannot run says why instead of a time.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from skipstep.benchmarks.gpu.cases import draw, uniform
from skipstep.benchmarks.gpu.slices import Machine, Unit, Values, timed_or_why
from skipstep.kernels.gs_project import project_gaussians
from skipstep.kernels.gs_raster import rasterize_gaussians
from skipstep.pipelines.splat.cameras import Cameras

__all__ = ["units"]

# Name: splats, views, width, height, channels.
SIZES = {
    "scene_1M_1080p": (1_000_000, 1, 1920, 1080, 3),
    "scene_100k_512px": (100_000, 1, 512, 512, 3),
    "scene_100k_512px_32_features": (100_000, 1, 512, 512, 32),
    "feed_forward_4096_64_views_64px": (4096, 64, 64, 64, 3),
    "feed_forward_16384_8_views_256px": (16384, 8, 256, 256, 3),
}
# The plain path is minutes at the largest size.
MOST_FOR_TORCH = 200_000
Draw = Callable[[list[Tensor]], Tensor]


def units(machine: Machine) -> Iterator[Unit]:
    """Yield one unit per size."""
    for name, (n, views, width, height, channels) in SIZES.items():
        if machine.tiny:
            n, views, width, height = 200, min(views, 2), 24, 16
        yield Unit(name, functools.partial(measure, machine, n, views, width, height, channels))


@torch.inference_mode(False)
def measure(machine: Machine, n: int, views: int, width: int, height: int, channels: int) -> Values:
    """Time all backends on one scene, and say how far gsplat's picture is from ours."""
    cameras = Cameras.orbit(views, elevation=20, radius=2.0, width=width, height=height)
    cameras = cameras.to(machine.device)
    scene = shell(machine, n, channels)
    backends: dict[str, Draw] = {"ours": functools.partial(ours, cameras, None)}
    if n <= MOST_FOR_TORCH:
        backends["torch"] = functools.partial(ours, cameras, "torch")
    if machine.device.type == "cuda" and importlib.util.find_spec("gsplat"):
        backends["gsplat"] = functools.partial(theirs, cameras)
    values: Values = {"splats": n, "views": views, "width": width, "height": height}
    for name, drawn in backends.items():
        leaves = [value.clone().requires_grad_() for value in scene]
        # A failure of gsplat is a result; one of ours is a bug.
        timed = functools.partial(timed_or_why, machine) if name == "gsplat" else machine.median
        values[f"ms_{name}_forward"] = timed(functools.partial(forward, drawn, scene))
        values[f"ms_{name}_both"] = timed(functools.partial(both, drawn, leaves))
    if isinstance(values.get("ms_gsplat_forward"), float):
        off = (backends["ours"](scene) - backends["gsplat"](scene)).abs().mean()
        values["mean_difference_to_gsplat"] = float(off)
    elif "gsplat" not in backends:
        values["gsplat"] = "not measured: it needs CUDA and the package gsplat"
    return values


def shell(machine: Machine, n: int, channels: int) -> list[Tensor]:
    """Draw flat splats on a shell: means, quats, scales, opacities, features."""
    device = machine.device
    directions = torch.nn.functional.normalize(draw(device, torch.float32, n, 3), dim=-1)
    means = directions * (0.6 + 0.15 * uniform(device, n, 1, seed=1))
    spread = torch.exp(0.4 * draw(device, torch.float32, n, 3, seed=2))
    flat = torch.tensor([1.0, 1.0, 0.3], device=device)
    scales = 1.2 * (4 * torch.pi * 0.45 / n) ** 0.5 * spread * flat
    quats = draw(device, torch.float32, n, 4, seed=3)
    opacities = 0.3 + 0.69 * uniform(device, n, seed=4)
    return [means, quats, scales, opacities, uniform(device, n, channels, seed=5)]


def ours(cameras: Cameras, backend: str | None, scene: list[Tensor]) -> Tensor:
    """Render with our kernels."""
    means, quats, scales, opacities, features = scene
    width, height = cameras.width, cameras.height
    projected = project_gaussians(
        means, quats, scales, cameras.w2c, cameras.K, width=width, height=height
    )
    v = len(cameras)
    image, _ = rasterize_gaussians(
        *projected,
        opacities.expand(v, -1),
        features.expand(v, -1, -1),
        width=width,
        height=height,
        backend=backend,
    )
    return image


def theirs(cameras: Cameras, scene: list[Tensor]) -> Tensor:
    """Render with gsplat."""
    means, quats, scales, opacities, features = scene
    image: Tensor = importlib.import_module("gsplat").rasterization(
        means, quats, scales, opacities, features, cameras.w2c, cameras.K,
        width=cameras.width, height=cameras.height,
    )[0]  # fmt: skip
    return image


@torch.no_grad()
def forward(drawn: Draw, scene: list[Tensor]) -> None:
    """Render."""
    drawn(scene)


def both(drawn: Draw, leaves: list[Tensor]) -> None:
    """Render and compute all gradients."""
    for leaf in leaves:
        leaf.grad = None
    torch.autograd.backward(drawn(leaves).sum())
