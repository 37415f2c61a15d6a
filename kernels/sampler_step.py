"""One pass of a linear solver: old state, predictions with guidance, and fresh noise.

out = a x + sum_j c_j (u_j + g (p_j - u_j)) + s z

DDIM, flow Euler, DPM-Solver++ and UniPC steps are of this form: x the state, p_j the conditional
predictions of this step and earlier ones, u_j the unconditional ones, g the guidance scale and z
noise. Written with separate operations it reads and writes the state once per term; here each
tensor is read once. Sums are taken in fp32 (fp64 for fp64) and rounded once.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.kernels.dispatch import backend_for, custom_op

__all__ = ["linear_step", "linear_step_ref"]

MOST = 8
"""Tensors that the kernel reads in one pass."""


def linear_step_ref(
    tensors: Sequence[Float[Tensor, "..."]], coefficients: Sequence[float]
) -> Float[Tensor, "..."]:
    """Return sum_j coefficients[j] * tensors[j], rounded once to the first tensor's type."""
    first = tensors[0]
    wide = torch.float64 if first.dtype == torch.float64 else torch.float32
    total = first.to(wide) * coefficients[0]
    for tensor, coefficient in zip(tensors[1:], coefficients[1:], strict=True):
        total = total.add(tensor.to(wide), alpha=coefficient)
    return total.to(first.dtype)


def _shape(tensors: Sequence[Tensor], coefficients: Sequence[float], backend: str) -> Tensor:
    return torch.empty_like(tensors[0], memory_format=torch.contiguous_format)


@custom_op("linear_step", fake=_shape)
def _linear_step(tensors: Sequence[Tensor], coefficients: Sequence[float], backend: str) -> Tensor:
    unserved = None if len(tensors) <= MOST else f"it takes {MOST} tensors, not {len(tensors)}"
    if backend_for("linear_step", *tensors, backend=backend, unserved=unserved) == "torch":
        return linear_step_ref(tensors, coefficients).contiguous()
    from skipstep.kernels.sampler_step_triton import linear_step_triton

    return linear_step_triton(tensors, coefficients)


def linear_step(
    x: Float[Tensor, "..."],
    a: float,
    predictions: Sequence[Float[Tensor, "..."]],
    coefficients: Sequence[float],
    *,
    unconditional: Sequence[Float[Tensor, "..."]] | None = None,
    guidance: float = 1.0,
    noise: Float[Tensor, "..."] | None = None,
    noise_scale: float = 0.0,
    backend: str | None = None,
) -> Float[Tensor, "..."]:
    """Return the next state, of the type of `x`.

    Where a gradient is wanted, plain torch runs.

    Args:
        predictions: p_j, conditional ones if there are unconditional ones.
        unconditional: u_j, one per prediction; None where guidance is none of this step's business.
        guidance: g; 1 is none.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises ValueError where counts or shapes do not fit, or the backend cannot serve.

    >>> one = torch.ones(2)
    >>> linear_step(one, 0.5, [3 * one], [2.0], unconditional=[one], guidance=2.0)
    tensor([10.5000, 10.5000])
    """
    besides = [] if unconditional is None else list(unconditional)
    if len(predictions) != len(coefficients) or (besides and len(besides) != len(predictions)):
        raise ValueError(
            f"linear_step was given {len(predictions)} predictions, {len(coefficients)} "
            f"coefficients and {len(besides)} unconditional predictions: one of each a term"
        )
    share = guidance if besides else 1.0
    terms = [x, *predictions, *besides]
    factors = [a, *(c * share for c in coefficients), *((1 - share) * c for c in coefficients)]
    factors = factors[: len(terms)]
    if noise is not None:
        terms, factors = [*terms, noise], [*factors, noise_scale]
    for term in terms:
        if term.shape != x.shape:
            raise ValueError(
                f"linear_step was given {tuple(term.shape)} beside x {tuple(x.shape)}: all tensors "
                "share one shape"
            )
    if torch.is_grad_enabled() and any(term.requires_grad for term in terms):
        return linear_step_ref(terms, factors)
    out: Tensor = _linear_step(terms, factors, backend or "auto")
    return out
