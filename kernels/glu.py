"""Gated linear units without the tensors in between (Shazeer 2020, arXiv:2002.05202).

geglu(x)  = a * gelu(b)
swiglu(x) = a * silu(b),   a, b the first and second half of the last axis

gelu is exact (erf) or by tanh. Products are taken in fp32 and rounded once. The order of the halves
is that of diffusers' feed-forwards: the gate comes second.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from skipstep.kernels.dispatch import backend_for, custom_op

__all__ = ["geglu", "glu_ref", "swiglu"]

Activation = Literal["gelu", "gelu_tanh", "silu"]


def glu_ref(x: Float[Tensor, "*b d2"], activation: str) -> Float[Tensor, "*b d"]:
    """Return the definition in plain torch."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    a, b = x.to(wide).chunk(2, -1)
    if activation == "silu":
        return (a * functional.silu(b)).to(x.dtype)
    tanh = "tanh" if activation == "gelu_tanh" else "none"
    return (a * functional.gelu(b, approximate=tanh)).to(x.dtype)


def _shape(x: Tensor, activation: str, backend: str) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] // 2))


@custom_op("glu", fake=_shape)
def _glu(x: Tensor, activation: str, backend: str) -> Tensor:
    if backend_for("glu", x, backend=backend) == "torch":
        return glu_ref(x, activation).contiguous()
    from skipstep.kernels.glu_triton import glu_triton

    return glu_triton(x, activation)


def geglu(
    x: Float[Tensor, "*b d2"],
    *,
    approximate: Literal["none", "tanh"] = "none",
    backend: str | None = None,
) -> Float[Tensor, "*b d"]:
    """Return the first half times gelu of the second. Where a gradient is wanted, plain torch runs.

    Args:
        approximate: "none" for the exact gelu, "tanh" for its approximation.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises ValueError on an odd last axis, and where the backend cannot serve.

    >>> geglu(torch.tensor([[2.0, 0.0]]))
    tensor([[0.]])
    """
    return _gated_unit("geglu", x, "gelu_tanh" if approximate == "tanh" else "gelu", backend)


def swiglu(x: Float[Tensor, "*b d2"], *, backend: str | None = None) -> Float[Tensor, "*b d"]:
    """Return the first half times silu of the second. Arguments are as in `geglu`.

    >>> swiglu(torch.tensor([[2.0, 0.0]]))
    tensor([[0.]])
    """
    return _gated_unit("swiglu", x, "silu", backend)


def _gated_unit(name: str, x: Tensor, activation: Activation, backend: str | None) -> Tensor:
    if x.ndim == 0 or x.shape[-1] % 2:
        raise ValueError(f"{name} was given {tuple(x.shape)}: the last axis holds two equal halves")
    if x.requires_grad and torch.is_grad_enabled():
        return glu_ref(x, activation)
    out: Tensor = _glu(x, activation, backend or "auto")
    return out
