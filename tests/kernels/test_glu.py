"""Gated linear units: torch's activations in float64, and every number of an odd row."""

import pytest
import torch
from torch.nn import functional

from skipstep.kernels.glu import geglu, swiglu


@pytest.mark.parametrize("backend", ["torch", "interpret"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_torchs_activations(backend: str, dtype: torch.dtype) -> None:
    x = 3 * torch.randn(2, 3, 2 * 1100, generator=torch.Generator().manual_seed(0))
    x = x.to(dtype)
    a, b = x.double().chunk(2, -1)
    near = 1e-5 if dtype == torch.float32 else 2**-7
    for found, wanted in (
        (geglu(x, backend=backend), a * functional.gelu(b)),
        (geglu(x, approximate="tanh", backend=backend), a * functional.gelu(b, approximate="tanh")),
        (swiglu(x, backend=backend), a * functional.silu(b)),
    ):
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), wanted, rtol=near, atol=1e-5)


def test_gradients_flow() -> None:
    x = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(swiglu, x) and torch.autograd.gradcheck(geglu, x)


def test_an_odd_axis_is_refused() -> None:
    with pytest.raises(ValueError, match=r"geglu was given \(2, 3\): the last axis holds two"):
        geglu(torch.zeros(2, 3))
