"""At which times t a recipe looks: options that every recipe shares.

`uniform`; `logit_normal`, middle times (Esser et al. 2024, arXiv:2403.03206); `bifocal`,
p(t) ~ exp(a t) + exp(a (1 - t)), both ends, for flows that are nearly straight already (Liu et al.
2025, FlashAudio, arXiv:2410.12266); `loss_aware`, in proportion to the loss seen at each time, with
weights that keep the mean loss unbiased (the idea of RayFlow's time sampler, Shao et al. 2025,
arXiv:2503.07699). RayFlow learns log q with a small net and a Stein objective; here q is a running
mean of the loss in 16 cells, which has no parameters and can be checked.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["LossAwareTimes", "TimeLaw", "draw_times"]

TimeLaw = Literal["uniform", "logit_normal", "bifocal", "loss_aware"]
BIFOCAL_A = 4.0
CELLS = 16


def draw_times(law: TimeLaw, count: int, generator: torch.Generator) -> Float[Tensor, " b"]:
    """Return `count` times in (0, 1) of a law that needs no memory."""
    if law == "logit_normal":
        return torch.sigmoid(torch.randn(count, generator=generator))
    u = torch.rand(count, generator=generator)
    if law == "bifocal":
        # cdf (sinh(a (2t - 1) / 2) / sinh(a / 2) + 1) / 2 of exp(a t) + exp(a (1 - t)), inverted.
        middle = torch.asinh((2 * u - 1) * math.sinh(BIFOCAL_A / 2)) * 2 / BIFOCAL_A
        return ((middle + 1) / 2).clamp(1e-5, 1 - 1e-5)
    return u


class LossAwareTimes:
    """Draw times in proportion to the loss seen there; `weights` make up for it.

    q(t) = mean of the loss in t's cell / sum over cells, mixed with one tenth of uniform, so that
    no weight exceeds ten.
    """

    def __init__(self) -> None:
        self.losses = torch.ones(CELLS)

    def shares(self) -> Float[Tensor, " cells"]:
        """Return the probability of each cell."""
        return 0.9 * self.losses / self.losses.sum() + 0.1 / CELLS

    def draw(
        self, count: int, generator: torch.Generator
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Return times and the weights p/q of their losses."""
        shares = self.shares()
        cell = torch.multinomial(shares, count, replacement=True, generator=generator)
        times = (cell + torch.rand(count, generator=generator)) / CELLS
        return times, 1 / (CELLS * shares[cell])

    def note(self, times: Float[Tensor, " b"], losses: Float[Tensor, " b"]) -> None:
        """Remember unweighted losses, a fifth of the new and four fifths of the old."""
        cells = (times * CELLS).long().clamp(max=CELLS - 1)
        for cell in sorted(set(cells.tolist())):
            mean = losses[cells == cell].mean()
            self.losses[cell] = torch.lerp(self.losses[cell], mean.float().cpu(), 0.2)
