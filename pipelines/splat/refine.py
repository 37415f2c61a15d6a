"""Refine Gaussians on their own input pictures by gradient descent, as Kerbl et al. 2023 train.

(arXiv:2308.04079), without their heuristics of splitting and cloning: the start is dense already.
Adam on means, quaternions, ln scales, logits of opacities and harmonics, on the mean of
  L = 0.8 |I - I*|_1 + 0.2 (1 - SSIM)          and, where pictures have alpha, + 0.3 |A - A*|^2
over one or a few views per step. The rates fall by a cosine to a tenth. Means move in units of the
scene's size, so that rates do not depend on the unit of length.
Differs from the authors' code: no density control, several views per step.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.render import Rendering

__all__ = ["RATES", "refine", "ssim"]

RATES = {"means": 1.5e-3, "quats": 1e-2, "scales": 1e-2, "opacities": 3e-2, "sh": 1e-2}
# Harmonics above degree 0 learn this much slower, as the authors have it.
HIGHER = 0.05


def ssim(
    one: Float[Tensor, "v height width 3"], other: Float[Tensor, "v height width 3"]
) -> Float[Tensor, ""]:
    """Return the mean structural similarity over 7 x 7 windows (Wang et al. 2004)."""

    def blur(values: Tensor) -> Tensor:
        return torch.nn.functional.avg_pool2d(values, 7, stride=1)

    x, y = one.permute(0, 3, 1, 2), other.permute(0, 3, 1, 2)
    mx, my = blur(x), blur(y)
    xx, yy, xy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    upper = (2 * mx * my + 0.01**2) * (2 * xy + 0.03**2)
    lower = (mx * mx + my * my + 0.01**2) * (xx + yy + 0.03**2)
    return (upper / lower).mean()


def refine(
    gaussians: Gaussians,
    pictures: Float[Tensor, "v c height width"],
    cameras: Cameras,
    *,
    steps: int = 150,
    views_per_step: int = 1,
    background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    rates: dict[str, float] | None = None,
    seed: int = 0,
    penalty: Callable[[list[int], Rendering], Tensor] | None = None,
    on_step: Callable[[int, float], bool] | None = None,
) -> Gaussians:
    """Return refined Gaussians; the input is unchanged.

    Args:
        gaussians: Where to start.
        pictures: RGB composited over `background`, 0 to 1, or RGB and alpha.
        cameras: Of the pictures, in their size.
        steps: Steps of Adam.
        views_per_step: Views drawn for each step.
        background: What the pictures are over.
        rates: Learning rates that replace those of RATES.
        seed: Of the order of views.
        penalty: Added to the loss: of the numbers of the views of a step and their rendering, which
            then has its depth.
        on_step: Called with the step and its loss; returning True ends the refinement.
    """
    generator = torch.Generator().manual_seed(seed)
    rates = {**RATES, **(rates or {})}
    start = gaussians.detach()
    _, size = start.extent()
    free = {
        "means": start.means / size,
        "quats": torch.nn.functional.normalize(start.quats, dim=-1),
        "scales": torch.log(start.scales / size),
        "opacities": torch.logit(start.opacities, eps=1e-4),
        "base": start.sh[:, :1],
        "higher": start.sh[:, 1:],
    }
    free = {name: values.clone().requires_grad_() for name, values in free.items()}
    peaks = {**rates, "base": rates["sh"], "higher": rates["sh"] * HIGHER}
    optimizer = torch.optim.Adam(
        [{"params": [values], "peak": peaks[name]} for name, values in free.items()], eps=1e-15
    )

    def current() -> Gaussians:
        return Gaussians(
            means=free["means"] * size,
            quats=free["quats"],
            scales=torch.exp(free["scales"]) * size,
            opacities=torch.sigmoid(free["opacities"]),
            sh=torch.cat([free["base"], free["higher"]], 1),
            features=start.features,
        )

    order: list[int] = []
    outputs = () if penalty is None else ("depth",)
    wanted = pictures.permute(0, 2, 3, 1)
    for step in range(steps):
        factor = 0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        while len(order) < views_per_step:
            order += torch.randperm(len(pictures), generator=generator).tolist()
        views, order = order[:views_per_step], order[views_per_step:]
        rendering = current().render(cameras[views], background=background, outputs=outputs)
        target = wanted[views]
        loss = 0.8 * (rendering.rgb - target[..., :3]).abs().mean()
        loss = loss + 0.2 * (1 - ssim(rendering.rgb, target[..., :3]))
        if target.shape[-1] == 4:
            loss = loss + 0.3 * (rendering.alpha - target[..., 3]).square().mean()
        if penalty is not None:
            loss = loss + penalty(views, rendering)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if on_step is not None and on_step(step, float(loss.detach())):
            break
    return current().detach()
