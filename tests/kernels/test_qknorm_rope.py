"""QK norm and rotary positions: angles add up, diffusers' own functions, both kinds of pairs."""

import pytest
import torch
from diffusers.models.embeddings import apply_rotary_emb, get_1d_rotary_pos_embed
from torch import Tensor
from torch.nn import functional

from skipstep.kernels.qknorm_rope import qk_norm_rope

BACKENDS = ["torch", "interpret"]


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Draw numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def angles(n: int, d: int) -> Tensor:
    """Return the angle of every token and pair."""
    return torch.arange(n)[:, None] * 10.0 ** -torch.linspace(0, 3, d // 2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("interleaved", [True, False])
def test_only_the_distance_of_two_tokens_matters(backend: str, interleaved: bool) -> None:
    q, k = (draw(1, 1, 2, 16, seed=s).expand(1, 9, 2, 16) for s in (0, 1))
    a = angles(9, 16)
    turned = qk_norm_rope(
        q, k, None, None, a.cos(), a.sin(), interleaved=interleaved, backend=backend
    )
    products = torch.einsum("bnhd,bmhd->bhnm", *turned)
    for distance in (0, 3):
        diagonal = products.diagonal(distance, 2, 3)
        torch.testing.assert_close(
            diagonal, diagonal[..., :1].expand_as(diagonal), atol=1e-4, rtol=0
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_diffusers_norm_and_rotation(backend: str, across: bool, dtype: torch.dtype) -> None:
    q, k = draw(2, 7, 3, 24).to(dtype), draw(2, 7, 1, 24, seed=1).to(dtype)
    weights = [draw(x.shape[2] * 24 if across else 24, seed=5) for x in (q, k)]
    cos, sin = get_1d_rotary_pos_embed(24, 7, use_real=True)
    found = qk_norm_rope(
        q, k, weights[0], weights[1], cos[:, ::2], sin[:, ::2],
        interleaved=True, across_heads=across, backend=backend,
    )  # fmt: skip
    for x, weight, actual in zip((q, k), weights, found, strict=True):
        flat = x.double().flatten(2) if across else x.double()
        normed = functional.rms_norm(flat, weight.shape, weight.double(), 1e-6).reshape(x.shape)
        wanted = apply_rotary_emb(normed.transpose(1, 2), (cos, sin)).transpose(1, 2)
        near = 1e-5 if dtype == torch.float32 else 2**-6
        torch.testing.assert_close(actual.double(), wanted.double(), rtol=near, atol=near)


def test_halves_are_interleaved_pairs_in_another_order() -> None:
    q, a = draw(1, 5, 2, 16), angles(5, 16)
    apart = torch.cat([q[..., 0::2], q[..., 1::2]], -1)
    kwargs = {"weight_q": None, "weight_k": None, "cos": a.cos(), "sin": a.sin()}
    pairs = qk_norm_rope(q, q, **kwargs, interleaved=True)[0]  # type: ignore[arg-type]
    halves = qk_norm_rope(apart, apart, **kwargs, interleaved=False)[0]  # type: ignore[arg-type]
    torch.testing.assert_close(torch.cat([pairs[..., 0::2], pairs[..., 1::2]], -1), halves)


def test_gradients_flow() -> None:
    q = draw(1, 2, 1, 4).double().requires_grad_()
    a = angles(2, 4).double()
    assert torch.autograd.gradcheck(
        lambda x: qk_norm_rope(x, x, None, None, a.cos(), a.sin(), interleaved=False), q
    )


@pytest.mark.usefixtures("as_users_see_it")
def test_errors_say_what_fits() -> None:
    q, a = torch.zeros(1, 5, 2, 8), torch.zeros(5, 4)
    with pytest.raises(ValueError, match=r"weight \(8,\): expected \[16\]"):
        qk_norm_rope(q, q, torch.ones(8), None, a, a, interleaved=True, across_heads=True)
    with pytest.raises(ValueError, match=r"angles are \[n, d/2\] or \[b, n, d/2\]"):
        qk_norm_rope(q, q, None, None, a[:4], a[:4], interleaved=True)
