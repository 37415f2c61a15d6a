"""Scores of tiles: the full softmax at stride 1, vertical and slash lines, shares that sum to 1."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.kernels.block_scores import antidiagonal_scores, sample_places, sampled_scores


def tile_shares(q: torch.Tensor, k: torch.Tensor, block_q: int, block_k: int) -> torch.Tensor:
    """Return the mean share of exact attention in every tile, by a loop in float64."""
    p = torch.softmax(q.double() @ k.double().mT * q.shape[-1] ** -0.5, -1)
    rows = [row.mean(2) for row in torch.split(p, block_q, dim=2)]
    return torch.stack(
        [torch.stack([c.sum(-1) for c in torch.split(row, block_k, -1)], -1) for row in rows], 2
    )


@pytest.mark.parametrize("backend", ["torch", "interpret"])
def test_stride_1_is_exact_attention_pooled(backend: str) -> None:
    q, k = torch.randn(1, 2, 45, 16), torch.randn(1, 2, 37, 16)
    found = antidiagonal_scores(q, k, stride=1, block_q=16, block_k=8, backend=backend)
    torch.testing.assert_close(found.double(), tile_shares(q, k, 16, 8), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "interpret"])
def test_a_vertical_line_is_found_at_every_stride(backend: str) -> None:
    q = torch.ones(1, 1, 64, 16)
    k = torch.zeros(1, 1, 64, 16)
    k[:, :, 37] = 40.0
    for stride in (2, 8):
        found = antidiagonal_scores(q, k, stride=stride, block_q=16, block_k=16, backend=backend)
        assert set(found.argmax(-1).flatten().tolist()) == {2} and float(found.amax(-1).min()) > 0.9


@pytest.mark.parametrize("backend", ["torch", "interpret"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_heads_equal_repeated_ones(backend: str, dtype: torch.dtype) -> None:
    q, k = torch.randn(2, 4, 40, 24).to(dtype), torch.randn(2, 2, 50, 24).to(dtype)
    repeated = k.repeat_interleave(2, dim=1)
    expected = antidiagonal_scores(q, repeated, stride=4, block_q=16, block_k=16)
    found = antidiagonal_scores(q, k, stride=4, block_q=16, block_k=16, backend=backend)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "interpret"])
def test_sampling_every_token_is_the_largest_entry_of_each_tile(backend: str) -> None:
    q, k = torch.randn(1, 2, 32, 16), torch.randn(1, 2, 48, 16)
    p = torch.softmax(q @ k.mT / 4, -1).reshape(1, 2, 4, 8, 6, 8).amax((3, 5))
    found = sampled_scores(q, k, count=8, block_q=8, block_k=8, backend=backend)
    torch.testing.assert_close(found, p / p.sum(-1, keepdim=True), rtol=1e-5, atol=1e-6)


@given(s=st.integers(1, 80), t=st.integers(1, 80), stride=st.sampled_from([1, 2, 8]))
@settings(max_examples=20)
def test_every_row_of_tiles_sums_to_one(s: int, t: int, stride: int) -> None:
    generator = torch.Generator().manual_seed(s * 81 + t)
    q, k = (100 * torch.randn(1, 1, n, 8, generator=generator) for n in (s, t))
    for found in (
        antidiagonal_scores(q, k, stride=stride, block_q=16, block_k=8),
        sampled_scores(q, k, count=8, block_q=16, block_k=8),
    ):
        assert found.shape == (1, 1, -(-s // 16), -(-t // 8))
        torch.testing.assert_close(found.sum(-1), torch.ones(1, 1, -(-s // 16)))


def test_samples_lie_in_their_blocks() -> None:
    places = sample_places(21, 8, 4, torch.device("cpu")).reshape(3, 4)
    assert (
        (places >= torch.tensor([[0], [8], [16]])) & (places < torch.tensor([[8], [16], [21]]))
    ).all()
    assert places[0].tolist() == [1, 3, 5, 7]


def test_a_long_row_is_cut_into_chunks_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k = torch.randn(1, 2, 100, 8), torch.randn(1, 2, 90, 8)
    whole = antidiagonal_scores(q, k, stride=2, block_q=16, block_k=16)
    monkeypatch.setattr("skipstep.kernels.block_scores.CHUNK", 1)
    torch.testing.assert_close(antidiagonal_scores(q, k, stride=2, block_q=16, block_k=16), whole)


def test_errors_say_what_fits() -> None:
    x = torch.zeros(1, 2, 32, 8)
    with pytest.raises(ValueError, match="stride 3 with blocks of 16 and 16: both must be mult"):
        antidiagonal_scores(x, x, stride=3, block_q=16, block_k=16)
    with pytest.raises(ValueError, match="count 9 with blocks of 16 and 8: allowed are 1 to 8"):
        sampled_scores(x, x, count=9, block_q=16, block_k=8)
    with pytest.raises(ValueError, match="the heads of q are a multiple of those of k"):
        sampled_scores(x[:, :1], x)
    with pytest.raises(ValueError, match="tiles of 3 x 16 thinned entries are no powers of two"):
        antidiagonal_scores(x, x, stride=1, block_q=3, block_k=16, backend="interpret")
