"""Does a clip move, and does it flicker? Two numbers that only mean something beside real clips.

  consistency = mean over f of cos( phi(x_f), phi(x_(f+1)) )    phi: pooled EfficientNet-Lite0  (1)
  motion      = mean over f of |x_(f+1) - x_f|                  sRGB in [0, 255]               (2)

A still clip has consistency 1 and motion 0, a flickering one little of the first and much of the
second; a good one is near the real ones in both.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.metrics.efficientnet import load_features

__all__ = ["frame_consistency", "motion"]


@torch.no_grad()
def frame_consistency(clips: Float[Tensor, "b f 3 height width"]) -> Float[Tensor, " b"]:
    """Return Eq. (1) of each clip in [-1, 1]."""
    model = load_features()
    features = F.normalize(torch.stack([model(clip) for clip in clips]), dim=-1)
    return (features[:, 1:] * features[:, :-1]).sum(-1).mean(1)


def motion(clips: Float[Tensor, "b f 3 height width"]) -> Float[Tensor, " b"]:
    """Return Eq. (2) of each clip in [-1, 1].

    >>> motion(torch.ones(1, 3, 3, 4, 4))
    tensor([0.])
    """
    return 127.5 * clips.diff(dim=1).abs().mean((1, 2, 3, 4))
