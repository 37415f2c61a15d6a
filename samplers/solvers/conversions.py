"""From what a network returns to what a solver extrapolates, on every path.

x = alpha x0 + sigma eps; a network returns eps, x0, v or a flow's velocity, a solver's kernel wants
u = x0, eps or v. Both are linear in (x, output), so the conversion is two numbers.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.samplers.solvers.adams import Kernel, Move
from skipstep.samplers.solvers.paths import Path

__all__ = ["corrected_start", "noised", "to_kernel"]


def to_kernel(
    kernel: Kernel, path: Path, s: float, prediction: str, sigma_data: float | None = None
) -> tuple[float, float]:
    """Return (p, q) with u = p x + q output, for what the network returns at s.

    Raises ValueError for an unknown prediction type.
    """
    alpha, sigma = path.alpha(s), path.sigma(s)
    if sigma_data is not None:
        norm = math.hypot(s, sigma_data)
        of_output = {"epsilon": 1.0, "v_prediction": -1.0}
        if prediction not in of_output:
            raise ValueError(f"prediction_type={prediction!r} with sigma_data: use 'epsilon'")
        p0, q0 = (sigma_data / norm) ** 2, of_output[prediction] * s * sigma_data / norm
    elif prediction == "epsilon":
        if kernel == "eps":
            return 0.0, 1.0
        p0, q0 = 1 / alpha, -sigma / alpha
    elif prediction == "sample":
        p0, q0 = 0.0, 1.0
    elif prediction == "v_prediction":
        p0, q0 = alpha, -sigma
    elif prediction == "flow_prediction":
        if kernel == "v":
            return 0.0, 1.0
        p0, q0 = 1.0, -sigma
    else:
        raise ValueError(
            f"prediction_type={prediction!r} is unknown: use 'epsilon', 'sample', "
            "'v_prediction' or 'flow_prediction'"
        )
    if kernel == "x0":
        return p0, q0
    # eps = (x - alpha x0) / sigma
    p, q = (1 - alpha * p0) / sigma, -alpha * q0 / sigma
    return (p, q) if kernel == "eps" else (p - p0, q - q0)


def noised(
    path: Path, x_0: Float[Tensor, "b ..."], noise: Float[Tensor, "b ..."], levels: Sequence[float]
) -> Float[Tensor, "b ..."]:
    """Return alpha x0 + sigma eps, each sample at its own s of `levels`."""
    alpha, sigma = (
        torch.tensor([part(s) for s in levels]).to(x_0).reshape(-1, *[1] * (x_0.ndim - 1))
        for part in (path.alpha, path.sigma)
    )
    return alpha * x_0 + sigma * noise


def corrected_start(kernel: Kernel, path: Path, s: float, to: float) -> Move:
    """Return Imagine Flash's first step x' = alpha' x0 + sigma' x: the start is the noise."""
    alpha, sigma = path.alpha(s), path.sigma(s)
    # x0 = a x + b u for the kernel's u
    a, b = {
        "x0": (0.0, 1.0),
        "eps": (1 / alpha if alpha else 0.0, -s),
        "v": (1 / (alpha + sigma), -sigma / (alpha + sigma)),
    }[kernel]
    share = path.alpha(to)
    return Move(s, path.sigma(to) + share * a, (share * b,))
