"""Normalise and modulate in one pass: what stands in front of every module of a diffusion block.

norm(x)   = (x - mean) / sqrt(var + eps) * weight        kind "ln", over the last axis
            x / sqrt(mean of squares + eps) * weight     kind "rms"
y         = norm(x) * (1 + scale) + shift
h, y      = residual + gate * x, norm(h) * (1 + scale) + shift

Peebles & Xie 2023 (DiT, arXiv:2212.09748) modulate so. A modulation holds one row per sample, per
frame or per token: m rows serve n tokens, n / m in a row. Sums are taken in fp32 and the result is
rounded once, where eager code rounds four times; `h` is rounded before it is normalised, as in
eager code.

The plain path for one row per sample folds scale and shift into the norm's own weight and bias: one
pass instead of three.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from skipstep.kernels.dispatch import backend_for, custom_op

__all__ = ["gate_residual_norm_modulate", "layernorm_modulate", "norm_modulate_ref"]

Kind = Literal["ln", "rms"]
Modulation = Float[Tensor, "b d"] | Float[Tensor, "b m d"]


def norm_modulate_ref(
    x: Float[Tensor, "b n d"],
    scale: Float[Tensor, "b m d"],
    shift: Float[Tensor, "b m d"],
    weight: Float[Tensor, " d"] | None,
    eps: float,
    rms: bool,
) -> Float[Tensor, "b n d"]:
    """Return the definition: normalised, scaled and shifted in fp32 (fp64 for fp64 input)."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = x.to(wide)
    y = y if rms else y - y.mean(-1, keepdim=True)
    y = y * (y.square().mean(-1, keepdim=True) + eps).rsqrt()
    y = y if weight is None else y * weight.to(wide)
    return (y * (1 + spread(scale, x).to(wide)) + spread(shift, x).to(wide)).to(x.dtype)


def folded(
    x: Float[Tensor, "b n d"],
    scale: Float[Tensor, "b 1 d"],
    shift: Float[Tensor, "b 1 d"],
    weight: Float[Tensor, " d"] | None,
    eps: float,
    rms: bool,
) -> Float[Tensor, "b n d"]:
    """Compute with one row of modulation per sample by the norm's own weight and bias."""
    factor = (1 + scale[:, 0]) if weight is None else (1 + scale[:, 0]) * weight
    factor, size = factor.to(x.dtype), x.shape[-1:]
    if rms:
        normed = [functional.rms_norm(one, size, w, eps) for one, w in zip(x, factor, strict=True)]
        return torch.stack(normed).add_(shift)
    rows = zip(x, factor, shift[:, 0].to(x.dtype), strict=True)
    return torch.stack([functional.layer_norm(one, size, w, b, eps) for one, w, b in rows])


def spread(modulation: Float[Tensor, "b m d"], x: Float[Tensor, "b n d"]) -> Tensor:
    """Return a modulation with a row for every token, or one that broadcasts."""
    rows = modulation.shape[1]
    return modulation if rows == 1 else modulation.repeat_interleave(x.shape[1] // rows, dim=1)


def _shape(x: Tensor, *others: object) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@custom_op("norm_modulate", fake=_shape)
def _norm_modulate(
    x: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    eps: float,
    rms: bool,
    backend: str,
) -> Tensor:
    if backend_for("layernorm_modulate", x, scale, shift, backend=backend) != "torch":
        from skipstep.kernels.norm_modulate_triton import norm_modulate_triton

        return norm_modulate_triton(x, None, None, scale, shift, weight, eps, rms)[1]
    compute = folded if scale.shape[1] == shift.shape[1] == 1 else norm_modulate_ref
    return compute(x, scale, shift, weight, eps, rms).contiguous()


def _shapes(residual: Tensor, x: Tensor, *others: object) -> tuple[Tensor, Tensor]:
    return _shape(x), _shape(x)


@custom_op("gate_residual_norm_modulate", fake=_shapes)
def _gated(
    residual: Tensor,
    x: Tensor,
    gate: Tensor,
    scale: Tensor,
    shift: Tensor,
    weight: Tensor | None,
    eps: float,
    rms: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    name, tensors = "gate_residual_norm_modulate", (residual, x, gate, scale, shift)
    if backend_for(name, *tensors, backend=backend) != "torch":
        from skipstep.kernels.norm_modulate_triton import norm_modulate_triton

        return norm_modulate_triton(x, residual, gate, scale, shift, weight, eps, rms)
    h = gated_ref(residual, x, gate)
    compute = folded if scale.shape[1] == shift.shape[1] == 1 else norm_modulate_ref
    return h.contiguous(), compute(h, scale, shift, weight, eps, rms).contiguous()


def gated_ref(residual: Tensor, x: Tensor, gate: Tensor) -> Tensor:
    """Return residual + gate * x, rounded once."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if x.dtype == wide:
        return torch.addcmul(residual, spread(gate, x), x)
    return torch.addcmul(residual.to(wide), spread(gate, x).to(wide), x.to(wide)).to(x.dtype)


def layernorm_modulate(
    x: Float[Tensor, "b n d"],
    scale: Float[Tensor, "b d"] | Float[Tensor, "b m d"],
    shift: Float[Tensor, "b d"] | Float[Tensor, "b m d"],
    *,
    eps: float = 1e-6,
    kind: Kind = "ln",
    weight: Float[Tensor, " d"] | None = None,
    backend: str | None = None,
) -> Float[Tensor, "b n d"]:
    """Return norm(x) * (1 + scale) + shift.

    Where a gradient is wanted, plain torch runs.

    Args:
        scale, shift: one row per sample, per frame ([b, f, d]) or per token.
        kind: "ln" or "rms".
        weight: of the norm itself.
        backend: "torch", "triton" or "interpret"; None chooses (`kernels.dispatch`).

    Raises ValueError where shapes do not fit or the backend cannot serve.

    >>> x = torch.tensor([[[1.0, 3.0]]])
    >>> layernorm_modulate(x, torch.ones(1, 2), torch.zeros(1, 2), eps=0.0)
    tensor([[[-2.,  2.]]])
    """
    scale, shift = (rows_of(part, x, "layernorm_modulate") for part in (scale, shift))
    check(x, weight, kind, "layernorm_modulate")
    rms = kind == "rms"
    if wants_gradient(x, scale, shift, weight):
        return norm_modulate_ref(x, scale, shift, weight, eps, rms)
    out: Tensor = _norm_modulate(x, scale, shift, weight, eps, rms, backend or "auto")
    return out


def gate_residual_norm_modulate(
    residual: Float[Tensor, "b n d"],
    x: Float[Tensor, "b n d"],
    gate: Float[Tensor, "b d"] | Float[Tensor, "b m d"],
    scale: Float[Tensor, "b d"] | Float[Tensor, "b m d"],
    shift: Float[Tensor, "b d"] | Float[Tensor, "b m d"],
    *,
    eps: float = 1e-6,
    kind: Kind = "ln",
    weight: Float[Tensor, " d"] | None = None,
    backend: str | None = None,
) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"]]:
    """Return (h, y): the new stream residual + gate * x, and what the next module sees of it.

    Where a gradient is wanted, plain torch runs. Arguments are as in `layernorm_modulate`.

    >>> one = torch.ones(1, 1, 2)
    >>> h, y = gate_residual_norm_modulate(one, one, one[0], one[0], one[0])
    >>> h, y
    (tensor([[[2., 2.]]]), tensor([[[1., 1.]]]))
    """
    name = "gate_residual_norm_modulate"
    gate, scale, shift = (rows_of(part, x, name) for part in (gate, scale, shift))
    check(x, weight, kind, name)
    rms = kind == "rms"
    if residual.shape != x.shape:
        raise ValueError(
            f"{name} was given a residual {tuple(residual.shape)} for x {tuple(x.shape)}: they are "
            "of one shape"
        )
    if wants_gradient(residual, x, gate, scale, shift, weight):
        h = gated_ref(residual, x, gate)
        return h, norm_modulate_ref(h, scale, shift, weight, eps, rms)
    found = _gated(residual, x, gate, scale, shift, weight, eps, rms, backend or "auto")
    return found[0], found[1]


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Say whether autograd follows any of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def rows_of(modulation: Tensor, x: Tensor, name: str) -> Tensor:
    """Return a modulation as [b, m, d], or raise ValueError where m rows cannot serve n tokens."""
    rows = modulation[:, None] if modulation.ndim == 2 else modulation
    b, n, d = x.shape
    if rows.shape[0] != b or rows.shape[2] != d or not rows.shape[1] or n % rows.shape[1]:
        raise ValueError(
            f"{name} was given a modulation {tuple(modulation.shape)} for x {tuple(x.shape)}: "
            "allowed are [b, d], and [b, m, d] with m dividing the tokens"
        )
    return rows


def check(x: Tensor, weight: Tensor | None, kind: str, name: str) -> None:
    """Raise ValueError on an unknown norm and a weight of another size."""
    if kind not in ("ln", "rms"):
        raise ValueError(f"{name} was given kind {kind!r}: allowed are 'ln' and 'rms'")
    if weight is not None and tuple(weight.shape) != (x.shape[-1],):
        raise ValueError(
            f"{name} was given a weight {tuple(weight.shape)} for {x.shape[-1]} channels"
        )
