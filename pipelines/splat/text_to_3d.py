"""Text to 3D in two known steps: a text-to-image pipeline draws, the single-view model lifts.

The prompt asks for a white background, the object is cut from whatever the picture's border shows,
and `SingleViewGaussianModel` makes Gaussians of it in one pass. No optimisation per prompt, as
score distillation (Poole et al. 2022, arXiv:2209.14988) needs.

With the shipped models the drawing is emoji art of 180 kinds and the lifter has seen boxes, balls
and cones: the result is a relief with a plausible back, a test of the path and not of art.
"""

from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from skipstep.pipelines.splat.capture import tensor_of
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.pipeline import GaussianReconstructionPipeline, load_reconstructor

__all__ = ["cut_out", "gaussians_from_text"]

# Colour differences from the border's colour where an object begins and where it is solid.
FAINT, SOLID = 0.06, 0.16
# Share of the picture that the object fills, as the lifter was trained.
FILLED = 0.7


def gaussians_from_text(
    prompt: str,
    *,
    text_to_image: Any = None,
    reconstructor: Any = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Gaussians, Image.Image]:
    """Return the Gaussians and the picture they were made from.

    Args:
        prompt: What to draw; "on a white background" is added.
        text_to_image: Any text-to-image pipeline; None is the shipped reference model.
        reconstructor: A `SingleViewGaussianModel`; None is the shipped one.
        seed: Of the drawing.
        options: Passed to the text-to-image pipeline, such as num_inference_steps.

    Raises ValueError when the picture shows nothing before its background.
    """
    if text_to_image is None:
        from skipstep.pipelines.reference.load import load_reference

        text_to_image = load_reference()
    if reconstructor is None:
        reconstructor = load_reconstructor("single-view")
    generator = torch.Generator().manual_seed(seed)
    drawn = text_to_image(f"{prompt}, on a white background", generator=generator, **options)
    picture = drawn.images[0].convert("RGB")
    cut = cut_out(tensor_of([picture]))
    return GaussianReconstructionPipeline(reconstructor)(cut).gaussians, picture


def cut_out(picture: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "1 4 size size"]:
    """Return what differs from the border's median colour, with alpha, centred in a square.

    Raises ValueError when nothing does.
    """
    top, bottom, left, right = (
        picture[..., 0, :],
        picture[..., -1, :],
        picture[..., 0],
        picture[..., -1],
    )
    wall = torch.cat([top, bottom, left, right], -1)[0].median(-1).values
    off = (picture - wall[:, None, None]).abs().amax(1, keepdim=True)
    alpha = ((off - FAINT) / (SOLID - FAINT)).clamp(0, 1)
    solid = alpha[0, 0] > 0.5
    if not bool(solid.any()):
        raise ValueError("the picture shows one colour alone: another seed or prompt may help")
    rows, columns = solid.any(1).nonzero()[:, 0], solid.any(0).nonzero()[:, 0]
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    x0, x1 = int(columns[0]), int(columns[-1]) + 1
    cut = torch.cat([picture, alpha], 1)[..., y0:y1, x0:x1]
    size = round(max(y1 - y0, x1 - x0) / FILLED)
    down, across = (size - (y1 - y0)) // 2, (size - (x1 - x0)) // 2
    pad = (across, size - (x1 - x0) - across, down, size - (y1 - y0) - down)
    return torch.nn.functional.pad(cut, pad)
