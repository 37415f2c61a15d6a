"""Anchored guidance (Liu et al. 2025, FlashAudio, arXiv:2410.12266): guided paths that stay near
the unguided one, for the students that learn from paths.

  z*_k   the path without guidance, the anchor
  e_k = argmin_e | z_(k+1)(e) - z*_(k+1) |^2,   v = v(z_k, e) + w (v(z_k, c) - v(z_k, e))
Strong guidance drives samples past the data and into fewer of them. Here the empty prompt e_k is
optimised at every step, so that the guided step ends near the anchor's; a few updates leave part of
the guidance in, many leave none. One gradient through the network an update: paths cost some three
times as much for each.
Differs from the paper: Adam, each step beginning from the last one's empty prompt; the paper's
inner loop and its stop are not published.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.samplers.distill.flow import Condition, Guided, Velocity, with_negative
from skipstep.samplers.distill.paths import next_state, teacher_path

__all__ = ["anchored_path"]

OPTIMISED = "encoder_hidden_states"


def anchored_path(
    flow: Velocity,
    noise: Float[Tensor, " b *size"],
    times: Sequence[float],
    condition: Condition,
    empty: Condition,
    *,
    scale: float,
    updates: int,
    rate: float = 0.02,
) -> Float[Tensor, "b k *size"]:
    """Return the states at `times` of the guided path, `updates` updates a step at its anchor.

    `rate` is in units of the empty prompt's root mean square, or of 1 where that is zero.
    Raises ValueError for a model without an empty prompt.
    """
    if OPTIMISED not in empty:
        raise ValueError("anchored guidance needs a teacher with an empty prompt to optimise")
    guided = Guided(flow, scale)
    rows = {name: value.expand(len(noise), *value.shape[1:]) for name, value in empty.items()}
    e = rows[OPTIMISED].clone()
    size = float(e.square().mean().sqrt()) or 1.0
    anchor = teacher_path(flow, noise, times, condition)
    x, path, before = noise, [noise], None

    def picture(x: Tensor, t: float, e: Tensor) -> Tensor:
        """Return x_0 with guidance away from e."""
        both = with_negative(condition, {**rows, OPTIMISED: e})
        return x - t * guided(x, torch.full((len(x),), t).to(x), both)

    for i, t in enumerate(times[:-1]):
        e = e.detach().requires_grad_(True)
        optimizer = torch.optim.Adam([e], lr=rate * size)
        for _ in range(updates):
            with torch.enable_grad():
                away = next_state(x, picture(x, t, e), before, times, i) - anchor[:, i + 1]
                (gradient,) = torch.autograd.grad(away.square().sum(), e)
            e.grad = gradient
            optimizer.step()
        with torch.no_grad():
            x_0 = picture(x, t, e)
            x, before = next_state(x, x_0, before, times, i), x_0
        path.append(x)
    return torch.stack(path, 1)
