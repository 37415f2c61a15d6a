"""Delta correction: exact anchors, exact where the error is constant, nearer on smooth queries."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as attention

from skipstep.kernels.delta import anchors, delta_correct


@pytest.mark.parametrize("backend", ["torch", "interpret"])
@pytest.mark.parametrize("tokens", [1, 63, 100])
def test_anchors_become_exact_and_a_constant_error_vanishes(backend: str, tokens: int) -> None:
    q, k, v = (torch.randn(2, 2, n, 16) for n in (tokens, 40, 40))
    dense = attention(q, k, v)
    noisy = dense + 0.1 * torch.randn_like(dense)
    places = anchors(tokens, 16)
    found = delta_correct(noisy, q, k, v, stride=16, backend=backend)
    torch.testing.assert_close(found[:, :, places], dense[:, :, places], rtol=1e-5, atol=1e-5)
    shifted = delta_correct(dense - 3.0, q, k, v, stride=16, backend=backend)
    torch.testing.assert_close(shifted, dense, rtol=1e-5, atol=1e-5)


def test_it_halves_the_error_of_a_mask_on_slowly_changing_queries() -> None:
    generator = torch.Generator().manual_seed(0)
    time = torch.linspace(0, 6, 128)[:, None] + torch.arange(16)
    q = torch.sin(time)[None, None]
    k, v = (torch.randn(1, 1, 128, 16, generator=generator) for _ in range(2))
    dense, sparse = attention(q, k, v), attention(q, k[:, :, ::2], v[:, :, ::2])
    before = (sparse - dense).norm()
    after = (delta_correct(sparse, q, k, v, stride=8) - dense).norm()
    assert after < 0.5 * before


@pytest.mark.parametrize("backend", ["torch", "interpret"])
def test_grouped_heads_and_half_precision(backend: str) -> None:
    q, k, v = torch.randn(1, 4, 33, 24), torch.randn(1, 2, 50, 24), torch.randn(1, 2, 50, 24)
    q, k, v = q.bfloat16(), k.bfloat16(), v.bfloat16()
    dense = attention(q, k, v, enable_gqa=True)
    found = delta_correct(dense - 1, q, k, v, stride=8, backend=backend)
    assert found.dtype == torch.bfloat16
    # The interpreter cuts bits off where hardware rounds: two units in the last place of 2.
    torch.testing.assert_close(found, dense, rtol=0, atol=2**-5)


def test_each_group_has_one_anchor_in_it() -> None:
    places = anchors(37, 8)
    assert (places // 8).tolist() == [0, 1, 2, 3, 4] and places.tolist() == [4, 12, 20, 28, 34]


def test_gradients_flow() -> None:
    q = torch.randn(1, 1, 8, 4, requires_grad=True)
    delta_correct(q * 0.5, q, q, q, stride=4).square().sum().backward()  # type: ignore[no-untyped-call]
    assert q.grad is not None and q.grad.isfinite().all() and q.grad.any()


@pytest.mark.usefixtures("as_users_see_it")
def test_errors_say_what_fits() -> None:
    x = torch.zeros(1, 2, 8, 4)
    with pytest.raises(ValueError, match="stride 0: at least 1 query per dense row"):
        delta_correct(x, x, x, x, stride=0)
    with pytest.raises(ValueError, match="o is shaped like q and k like v"):
        delta_correct(x[:, :, :4], x, x, x)
