"""Fidelity of a picture to its uncached twin: PSNR, SSIM and a feature distance, per sample.

All three take RGB pictures x, y in [-1, 1] of the same seed, prompt and steps; none says whether a
picture is good.

  (1) PSNR   10 log10(2^2 / MSE) decibels, MSE over all values of the sample;
             identical samples give infinity
  (2) SSIM   Wang et al. 2004, Eq. (13), on (x + 1) / 2 with L = 1, an 11 x 11 Gaussian window of
             sigma 1.5, K1 = .01, K2 = .03, borders reflected; identical samples give 1
  (3) LPe    mean over taps l of mean over positions of ||n(f_l(x)) - n(f_l(y))||^2,
             f_l the output of block l of EfficientNet-Lite0, n(f) = f / ||f|| over channels;
             identical samples give 0

LPe follows the idea of LPIPS (Zhang et al. 2018, arXiv:1801.03924) with another network and without
the heads fitted to human judgements, so it is NOT LPIPS and its values must never be quoted or
compared as LPIPS. Its limits: it is over-sensitive to faint noise on flat areas, where
normalisation blows small features up (noise of sigma .01 on flat
emoji: 48 dB but LPe .16), more lenient to small shifts than PSNR, and defined by weights trained on
    photographs.
"""

import functools
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.metrics.efficientnet import DEFAULT_TAPS, EfficientNetLite0, load_features

__all__ = ["feature_distance", "psnr", "ssim"]

WINDOW = 11


def psnr(x: Float[Tensor, "b ..."], y: Float[Tensor, "..."]) -> Float[Tensor, " b"]:
    """Return the peak signal-to-noise ratio in decibels of each sample, infinite where x equals y.

    >>> psnr(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.2))
    tensor([20.])
    """
    check_pair(x, y)
    mse = (x.float() - y.float()).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / mse)  # Eq. (1)


def ssim(x: Float[Tensor, "b c height width"], y: Float[Tensor, "..."]) -> Float[Tensor, " b"]:
    """Return the structural similarity of each sample, at most 1; sides need 11 pixels or more."""
    from torchmetrics.functional.image import structural_similarity_index_measure

    check_pair(x, y)
    if min(x.shape[-2:]) < WINDOW:
        raise ValueError(
            f"SSIM of {x.shape[-2]} x {x.shape[-1]} pictures: its window needs at least "
            f"{WINDOW} x {WINDOW} pixels, use psnr for smaller ones"
        )
    # SSIM's luminance term is not invariant to an offset: it is defined on [0, L].
    values = structural_similarity_index_measure(
        (x.float() + 1) / 2, (y.float() + 1) / 2, data_range=1.0, sigma=1.5, reduction="none"
    )
    # Eq. (2); a single sample comes back without its axis.
    return cast(Tensor, values).reshape(x.shape[0])


def feature_distance(
    x: Float[Tensor, "b 3 height width"],
    y: Float[Tensor, "..."],
    *,
    model: EfficientNetLite0 | None = None,
) -> Float[Tensor, " b"]:
    """Return LPe of each sample, 0 for identical pictures; `model` defaults to the shipped weights.

    Pictures are compared at their own resolution. Not LPIPS; see the limits at the top of this
    file.
    """
    check_pair(x, y)
    network = shipped_features() if model is None else model
    first = next(network.parameters())
    with torch.no_grad():
        maps = network.maps(torch.cat([x, y]).to(first.device, first.dtype), DEFAULT_TAPS)
    total = torch.zeros(x.shape[0], device=first.device)
    for f in maps:
        n = f.float() / f.float().norm(dim=1, keepdim=True).clamp_min(1e-10)
        n_x, n_y = n.chunk(2)
        total += (n_x - n_y).square().sum(1).mean((1, 2))
    return total / len(maps)  # Eq. (3)


@functools.cache
def shipped_features() -> EfficientNetLite0:
    """Load the feature network once a process."""
    return load_features()


def check_pair(x: Tensor, y: Tensor) -> None:
    """Raise ValueError unless both pictures have one shape."""
    if x.shape != y.shape:
        raise ValueError(
            f"pictures of shapes {tuple(x.shape)} and {tuple(y.shape)}: a fidelity compares "
            "pictures of one shape, so use the same size and number of prompts"
        )
