"""Pooling of blocks: closed forms, an independent loop, padding that is never read, the kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.kernels.block_pool import block_mean, block_stats


def stats_of(tokens: torch.Tensor) -> tuple[torch.Tensor, float, float]:
    """Return mean, mean cosine of all pairs and largest magnitude of [n, d] tokens, in float64."""
    x = tokens.double()
    unit = torch.nn.functional.normalize(x, dim=1)
    return x.mean(0), float((unit @ unit.T).mean()), float(x.abs().max())


def test_a_block_of_equal_directions_is_similar_and_of_opposite_ones_is_not() -> None:
    alike = torch.tensor([[1.0, 2.0], [2.0, 4.0], [1.0, 0.0], [-5.0, 0.0]])[None, None]
    torch.testing.assert_close(block_stats(alike, 2).similarity, torch.tensor([[[1.0, 0.0]]]))


@pytest.mark.parametrize("backend", ["torch", "interpret"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_a_float64_loop_over_ragged_blocks(backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(2, 2, 63, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = block_stats(x, 40, backend=backend)
    for b in range(2):
        for h in range(2):
            for n in range(2):
                mean, similarity, largest = stats_of(x[b, h, 40 * n : 40 * (n + 1)])
                torch.testing.assert_close(found.mean[b, h, n].double(), mean, rtol=1e-5, atol=1e-6)
                assert float(found.similarity[b, h, n]) == pytest.approx(similarity, abs=1e-6)
                assert float(found.largest[b, h, n]) == largest
    torch.testing.assert_close(block_mean(x, 40, backend=backend), found.mean)


@pytest.mark.parametrize("backend", ["torch", "interpret"])
def test_tokens_that_do_not_count_are_never_read(backend: str) -> None:
    x = torch.randn(1, 2, 50, 16)
    valid = torch.tensor([20, 0, 3])
    poisoned = x.clone()
    poisoned[:, :, 20:40] = torch.nan
    poisoned[:, :, 43:] = torch.inf
    found, mean = block_stats(poisoned, 20, valid, backend=backend), None
    for n, tokens in enumerate((x[0, 0, :20], x[0, 0, 40:43])):
        mean, similarity, largest = stats_of(tokens)
        torch.testing.assert_close(found.mean[0, 0, 2 * n].double(), mean, rtol=1e-5, atol=1e-6)
        assert float(found.similarity[0, 0, 2 * n]) == pytest.approx(similarity, abs=1e-6)
        assert float(found.largest[0, 0, 2 * n]) == largest
    assert not found.mean[:, :, 1].any() and not found.similarity[..., 1].any()
    torch.testing.assert_close(block_mean(poisoned, 20, valid, backend=backend), found.mean)


@pytest.mark.parametrize("backend", ["torch", "interpret"])
def test_zero_tokens_have_no_direction(backend: str) -> None:
    x = torch.zeros(1, 1, 32, 16)
    assert [float(value.abs().max()) for value in block_stats(x, 16, backend=backend)] == [0, 0, 0]
    x[0, 0, 0] = 1
    assert float(block_stats(x, 16, backend=backend).similarity[0, 0, 0]) == pytest.approx(1 / 256)


@given(
    tokens=st.integers(1, 70),
    block=st.integers(1, 40),
    d=st.sampled_from([1, 16, 40]),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_block_means_weighted_by_their_tokens_sum_to_the_whole(
    tokens: int, block: int, d: int, seed: int
) -> None:
    x = torch.randn(1, 2, tokens, d, generator=torch.Generator().manual_seed(seed)).double()
    means = block_mean(x, block)
    counts = torch.tensor([min(block, tokens - start) for start in range(0, tokens, block)])
    torch.testing.assert_close((means * counts[:, None]).sum(2), x.sum(2))
    assert torch.equal(means, block_stats(x, block).mean) or means.allclose(
        block_stats(x, block).mean
    )


def test_strided_heads_need_no_copy() -> None:
    x = torch.randn(1, 33, 2, 16).transpose(1, 2)
    for backend in ("torch", "interpret"):
        found = block_mean(x, 16, backend=backend)
        torch.testing.assert_close(found, block_mean(x.contiguous(), 16))


def test_errors_say_what_fits() -> None:
    x = torch.zeros(1, 1, 10, 4)
    with pytest.raises(ValueError, match="blocks of 0 in 10 tokens: both must be at least 1"):
        block_mean(x, 0)
    with pytest.raises(ValueError, match=r"`valid` of shape \(2,\) for 3 blocks of 4"):
        block_stats(x, 4, torch.tensor([4, 4]))
