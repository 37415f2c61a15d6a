"""Background-colour accuracy: does "on a blue background" give a blue background?

A test of text agreement that no learned model takes part in. The border of a picture is its
outermost pixels; its colour is the per-channel median m, because objects may touch the border in
places.

  predicted = argmin over named colours k of |m - palette_k|_2,   both in sRGB [0, 255]       (1)

Limits: it says nothing about the object, and a picture that is all background passes.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["background_colours", "border_colour"]


def border_colour(
    images: Float[Tensor, "b 3 height width"], *, width: int = 4
) -> Float[Tensor, "b 3"]:
    """Return the median border colour in [0, 255] of RGB pictures in [-1, 1].

    >>> border_colour(torch.ones(1, 3, 8, 8), width=2)
    tensor([[255., 255., 255.]])
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images have the shape {tuple(images.shape)}, but [b, 3, height, width] is needed: "
            "pass a batch of RGB pictures"
        )
    if not 0 < 2 * width < min(images.shape[-2:]):
        raise ValueError(
            f"a border of {width} pixels does not fit into {images.shape[-2]} x "
            f"{images.shape[-1]}: "
            "choose a width below half the shorter side"
        )
    is_border = torch.ones(images.shape[-2:], dtype=torch.bool, device=images.device)
    is_border[width:-width, width:-width] = False
    border = images.float()[..., is_border]  # [b, 3, pixels]
    return (border.median(dim=-1).values.clamp(-1, 1) + 1) * 127.5


def background_colours(
    images: Float[Tensor, "b 3 height width"],
    palette: Mapping[str, tuple[int, int, int]],
    *,
    width: int = 4,
) -> list[str]:
    """Return the name in `palette` that is nearest to each picture's border colour."""
    if not palette:
        raise ValueError("the palette is empty: name at least one colour")
    colours = torch.tensor(list(palette.values()), dtype=torch.float32, device=images.device)
    nearest = torch.cdist(border_colour(images, width=width), colours).argmin(dim=1)  # Eq. (1)
    names = list(palette)
    return [names[index] for index in nearest.tolist()]
