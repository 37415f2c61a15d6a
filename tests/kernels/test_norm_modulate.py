"""Norm and modulation: the model's own formula in float64, one row per sample, frame and token."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from skipstep.kernels.norm_modulate import gate_residual_norm_modulate, layernorm_modulate

N, D = 12, 40
BACKENDS = ["torch", "interpret"]


def draw(*shape: int, seed: int) -> Tensor:
    """Draw numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def expected(x: Tensor, scale: Tensor, shift: Tensor, weight: Tensor | None, kind: str) -> Tensor:
    """Return what a block's code computes, in float64 and token by token."""
    x, scale, shift = x.double(), scale.double(), shift.double()
    if scale.ndim == 2:
        scale, shift = scale[:, None], shift[:, None]
    scale, shift = (m.repeat_interleave(N // m.shape[1], 1) for m in (scale, shift))
    w = None if weight is None else weight.double()
    if kind == "ln":
        normed = functional.layer_norm(x, (D,), w, eps=1e-6)
    else:
        normed = functional.rms_norm(x, (D,), w, eps=1e-6)
    return normed * (1 + scale) + shift


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["ln", "rms"])
@pytest.mark.parametrize("shape", [(2, D), (2, 3, D), (2, N, D)], ids=["sample", "frame", "token"])
def test_equals_a_blocks_own_code(backend: str, kind: str, shape: tuple[int, ...]) -> None:
    x, scale, shift = draw(2, N, D, seed=0) + 3, draw(*shape, seed=1), draw(*shape, seed=2)
    weight = draw(D, seed=3) if kind == "rms" else None
    found = layernorm_modulate(x, scale, shift, kind=kind, weight=weight, backend=backend)  # type: ignore[arg-type]
    torch.testing.assert_close(
        found.double(), expected(x, scale, shift, weight, kind), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gated_residual_is_the_new_stream(backend: str, dtype: torch.dtype) -> None:
    x, residual = draw(2, N, D, seed=0).to(dtype), draw(2, N, D, seed=1).to(dtype)
    gate, scale, shift = (draw(2, D, seed=s).to(dtype) for s in (2, 3, 4))
    h, y = gate_residual_norm_modulate(residual, x, gate, scale, shift, backend=backend)
    sums = residual.double() + gate.double()[:, None] * x.double()
    # The interpreter cuts bits off where hardware rounds: one unit in the last place.
    near = {torch.float32: 1e-5, torch.bfloat16: 2**-7}[dtype]
    torch.testing.assert_close(h.double(), sums, rtol=near, atol=near)
    torch.testing.assert_close(
        y.double(), expected(h, scale, shift, None, "ln"), rtol=2 * near, atol=4 * near
    )


def test_a_sample_does_not_depend_on_its_batch() -> None:
    x, scale = draw(3, N, D, seed=0), draw(3, D, seed=1)
    together = layernorm_modulate(x, scale, scale)
    for i in range(3):
        one = slice(i, i + 1)
        torch.testing.assert_close(
            layernorm_modulate(x[one], scale[one], scale[one]), together[one]
        )


def test_gradients_are_those_of_the_plain_formula() -> None:
    x = draw(1, 2, 4, seed=0).double().requires_grad_()
    scale = draw(1, 4, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: layernorm_modulate(a, b, b), (x, scale))
    assert torch.autograd.gradcheck(
        lambda a, b: gate_residual_norm_modulate(a, a, b, b, b), (x, scale)
    )


@pytest.mark.usefixtures("as_users_see_it")
def test_errors_say_what_fits() -> None:
    x = torch.zeros(2, 10, 4)
    with pytest.raises(ValueError, match=r"modulation \(2, 3, 4\) for x \(2, 10, 4\): allowed"):
        layernorm_modulate(x, torch.zeros(2, 3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="kind 'batch': allowed are 'ln' and 'rms'"):
        layernorm_modulate(x, x, x, kind="batch")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"residual \(2, 9, 4\) for x \(2, 10, 4\)"):
        gate_residual_norm_modulate(x[:, :9], x, x, x, x)
