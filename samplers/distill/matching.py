"""Distribution matching: pull the student's samples to where the teacher finds them likelier.

  grad = (x_0^fake - x_0^real) / mean|x_0 - x_0^real|,   L_student = |x_0 - sg(x_0 - grad)|^2 / 2
  L_fake = |x_0^fake(x_tau, tau) - sg(x_0)|^2 / max(tau, 0.05)^2
x_0^fake and x_0^real are denoised estimates of the noised sample x_tau by a network that follows
the student's distribution and by the teacher (Yin et al. 2024, DMD, arXiv:2311.18828; the
normalisation and the alternation of updates from DMD2, arXiv:2405.14867).
"""

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.samplers.distill.flow import Condition, Velocity, as_rows

__all__ = ["denoised", "fake_loss", "matching_loss"]


def denoised(
    flow: Velocity, x: Float[Tensor, " b *size"], t: Float[Tensor, " b"], condition: Condition
) -> Float[Tensor, " b *size"]:
    """Return x_0 = x - t v(x, t)."""
    return x - as_rows(t, x) * flow(x, t, condition)


def matching_loss(
    x_0: Float[Tensor, " b *size"],
    real: Float[Tensor, " b *size"],
    fake: Float[Tensor, " b *size"],
) -> Float[Tensor, ""]:
    """Return a loss whose gradient in x_0 is the normalised difference of the two estimates."""
    with torch.no_grad():
        size = (x_0 - real).abs().flatten(1).mean(1)
        gradient = (fake - real) / (as_rows(size, x_0) + 1e-3)
        target = x_0 - gradient
    loss: Tensor = 0.5 * (x_0 - target).square().flatten(1).sum(1).mean()
    return loss / x_0[0].numel()


def fake_loss(
    fake: Velocity,
    x_0: Float[Tensor, " b *size"],
    x_tau: Float[Tensor, " b *size"],
    tau: Float[Tensor, " b"],
    condition: Condition,
) -> Float[Tensor, ""]:
    """Return how badly the fake network denoises the student's samples."""
    error = (denoised(fake, x_tau, tau, condition) - x_0).square().flatten(1).mean(1)
    loss: Tensor = (error / tau.clamp(min=0.05) ** 2).mean()
    return loss
