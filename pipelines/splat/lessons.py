"""What the reconstructors learn from: batches of procedural objects, the loss, the figure.

A batch is some objects, the pictures of each that the model is given, and 3 views as targets:
  L = mean |rgb - rgb*|^2 + 0.3 mean |alpha - alpha*|^2 + 0.05 mean |z - z*| where alpha* is set
Objects are mirrored and their colours permuted. The model of a single picture works in the frame of
its camera, so its targets' cameras are brought there.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.kernels.gs_project import project_gaussians
from skipstep.kernels.gs_raster import rasterize_gaussians
from skipstep.pipelines.splat.cost_volume import CostVolumeGaussianModel, PixelGaussians
from skipstep.pipelines.splat.examples import INPUTS, SIZE, Examples
from skipstep.pipelines.splat.single_view import SingleViewGaussianModel

__all__ = ["LESSONS", "Lesson", "draw_batch", "evaluate", "loss_of", "render_targets"]

TARGETS = 3
ORDERS = list(itertools.permutations(range(3)))


@dataclass(frozen=True)
class Lesson:
    """How one model is trained: its class, objects per step, and how often 1, 2, ... views."""

    weights: str
    model: Callable[[], Any]
    batch: int
    view_chances: dict[int, float]
    eval_views: int


LESSONS = {
    "cost-volume": Lesson(
        "cost-volume-v1",
        CostVolumeGaussianModel,
        batch=4,
        view_chances={2: 0.15, 3: 0.2, 4: 0.4, 5: 0.1, 6: 0.15},
        eval_views=4,
    ),
    "single-view": Lesson(
        "single-view-v1", SingleViewGaussianModel, batch=8, view_chances={1: 1.0}, eval_views=1
    ),
}


def render_targets(
    gaussians: PixelGaussians, w2c: Float[Tensor, "b v 4 4"], K: Float[Tensor, "3 3"]
) -> tuple[Float[Tensor, "b v height width 3"], Float[Tensor, "b v height width"]]:
    """Render every scene of a batch in its own views, on white, in one call."""
    b, v = w2c.shape[:2]
    projected = [
        project_gaussians(
            gaussians.means[scene],
            gaussians.quats[scene],
            gaussians.scales[scene],
            w2c[scene],
            K.expand(v, 3, 3),
            width=SIZE,
            height=SIZE,
        )
        for scene in range(b)
    ]
    means2d, conics, depths = (torch.cat(parts) for parts in zip(*projected, strict=True))
    image, alpha = rasterize_gaussians(
        means2d,
        conics,
        depths,
        gaussians.opacities.repeat_interleave(v, 0),
        gaussians.colours.repeat_interleave(v, 0),
        width=SIZE,
        height=SIZE,
        background=image_white(gaussians.colours),
    )
    return image.reshape(b, v, *image.shape[1:]), alpha.reshape(b, v, *alpha.shape[1:])


def image_white(like: Tensor) -> Float[Tensor, " 3"]:
    """Return white on the device of a tensor."""
    return torch.ones(3, device=like.device)


def draw_batch(
    lesson: Lesson, examples: Examples, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw inputs (pictures, depths, poses) and targets (pictures, poses), and K."""
    chances = torch.tensor(list(lesson.view_chances.values()))
    views = list(lesson.view_chances)[int(torch.multinomial(chances, 1, generator=generator))]
    chosen = torch.randint(len(examples), (lesson.batch,), generator=generator)
    pictures = examples.pictures[chosen].float() / 255
    depths, w2c = examples.depths[chosen].float(), examples.w2c[chosen]
    order = ORDERS[int(torch.randint(len(ORDERS), (), generator=generator))]
    pictures = pictures[:, :, [*order, 3]]
    if torch.rand((), generator=generator) < 0.5:
        mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
        pictures, depths, w2c = pictures.flip(-1), depths.flip(-1), mirror @ w2c @ mirror
    novel = INPUTS + torch.randperm(w2c.shape[1] - INPUTS, generator=generator)
    inputs = torch.cat([torch.randperm(INPUTS, generator=generator), novel])[:views]
    if views == 1:
        inputs = torch.randint(w2c.shape[1], (1,), generator=generator)
    targets = torch.randperm(w2c.shape[1], generator=generator)[:TARGETS]
    return (
        pictures[:, inputs],
        depths[:, inputs],
        w2c[:, inputs],
        pictures[:, targets],
        w2c[:, targets],
        examples.K,
    )


def reconstruct(
    model: Any, pictures: Tensor, w2c: Tensor, target_w2c: Tensor, K: Tensor
) -> tuple[PixelGaussians, Tensor]:
    """Return Gaussians of input views, and the targets' cameras in the Gaussians' frame."""
    if pictures.shape[1] == 1:
        gaussians = model(pictures[:, 0], K.expand(len(pictures), 3, 3))
        return gaussians, target_w2c @ torch.linalg.inv(w2c)
    return model(pictures, w2c, K.expand(*w2c.shape[:2], 3, 3)), target_w2c


def loss_of(model: Any, batch: tuple[Tensor, ...]) -> Tensor:
    """Return L of the module's docstring."""
    pictures, depths, w2c, wanted, target_w2c, K = batch
    gaussians, target_w2c = reconstruct(model, pictures, w2c, target_w2c, K)
    image, alpha = render_targets(gaussians, target_w2c, K)
    wanted = wanted.permute(0, 1, 3, 4, 2)
    loss = (image - wanted[..., :3]).square().mean()
    loss = loss + 0.3 * (alpha - wanted[..., 3]).square().mean()
    # The depth of a splat's pixel is the mean of the depths it covers.
    mask = pictures[:, :, 3]
    stride = mask.shape[-1] // gaussians.z.shape[-1]
    pool = torch.nn.functional.avg_pool2d
    covered = pool(mask, stride)
    z = pool(depths * mask, stride) / covered.clamp_min(1e-6)
    solid = (covered > 0.5).float()
    off = ((gaussians.z - z).abs() * solid).sum() / solid.sum().clamp_min(1.0)
    total: Tensor = loss + 0.05 * off
    return total


def psnr(image: Tensor, wanted: Tensor) -> float:
    """Return the PSNR in dB of pictures between 0 and 1."""
    return -10 * math.log10((image.clamp(0, 1) - wanted).square().mean().item() + 1e-10)


@torch.no_grad()
def evaluate(model: Any, examples: Examples, *, objects: int, views: int) -> tuple[float, float]:
    """Return the mean PSNR of novel and of input views, over objects and views.

    Inputs above 4 are novel views, which then are no targets.
    """
    novel, again = [], []
    first = max(views, INPUTS)
    total = examples.w2c.shape[1]
    for example in range(objects):
        pictures = examples.pictures[example : example + 1].float() / 255
        w2c = examples.w2c[example : example + 1]
        gaussians, cameras = reconstruct(
            model, pictures[:, :views], w2c[:, :views], w2c, examples.K
        )
        image, _ = render_targets(gaussians, cameras, examples.K)
        wanted = pictures[0, :, :3].permute(0, 2, 3, 1)
        novel += [psnr(image[0, view], wanted[view]) for view in range(first, total)]
        again += [psnr(image[0, view], wanted[view]) for view in range(views)]
    return sum(novel) / len(novel), sum(again) / len(again)
