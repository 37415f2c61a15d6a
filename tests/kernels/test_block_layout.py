"""Lists of kept blocks: round trips, mass, unions, masks of flex_attention."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipstep.kernels.block_layout import (
    BlockLists,
    all_blocks,
    blocks_of,
    from_bool,
    from_topk,
    from_topp,
    longest_first,
    union,
)

torch.set_num_threads(1)


def random_map(seed: int, nq: int, nk: int, density: float = 0.4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, nq, nk, generator=generator) < density


@given(st.integers(0, 99), st.integers(1, 9), st.integers(1, 9), st.sampled_from([0.0, 0.3, 1.0]))
def test_a_map_survives_the_round_trip(seed: int, nq: int, nk: int, density: float) -> None:
    kept = random_map(seed, nq, nk, density)
    lists = from_bool(kept)
    assert torch.equal(lists.to_bool(), kept)
    torch.testing.assert_close(lists.density(), kept.float().mean())


def test_entries_behind_a_list_are_never_read() -> None:
    kept = random_map(0, 5, 7)
    lists = from_bool(kept)
    behind = torch.arange(7) >= lists.cnt[..., None]
    wild = lists.idx.masked_fill(behind, 2**30)
    assert torch.equal(BlockLists(wild, lists.cnt, 7).to_bool(), kept)


@given(st.integers(0, 99), st.floats(0, 1), st.integers(1, 4))
def test_top_p_reaches_the_mass_with_the_fewest_blocks(seed: int, p: float, least: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(1, 2, 5, 16, generator=generator).softmax(-1)
    lists = from_topp(scores, p, min_keep=least)
    kept = lists.to_bool()
    mass = (scores * kept).sum(-1)
    assert bool((mass >= p - 1e-6).all())
    assert bool((lists.cnt >= least).all())
    smallest = scores.masked_fill(~kept, 2).amin(-1)
    not_needed = (mass - smallest >= p + 1e-6) & (lists.cnt > least)
    assert not bool(not_needed.any())


def test_top_p_keeps_a_block_of_a_row_without_mass() -> None:
    assert from_topp(torch.zeros(1, 1, 2, 4), 0.9).cnt.tolist() == [[[1, 1]]]


def test_top_p_of_one_keeps_every_block_with_mass() -> None:
    scores = torch.tensor([[[[0.5, 0.0, 0.25, 0.25]]]])
    assert from_topp(scores, 1.0).to_bool().tolist() == [[[[True, False, True, True]]]]


def test_top_k_keeps_the_highest_of_each_row() -> None:
    scores = torch.tensor([[[[1.0, 4.0, 3.0, 2.0], [0.0, 1.0, 2.0, 3.0]]]])
    assert from_topk(scores, 2).idx.tolist() == [[[[1, 2], [2, 3]]]]
    assert from_topk(scores, 9).cnt.tolist() == [[[4, 4]]]


def test_union_and_coarsen_are_or() -> None:
    a, b = random_map(1, 5, 6), random_map(2, 5, 6)
    assert torch.equal(union(from_bool(a), from_bool(b)).to_bool(), a | b)
    halves = torch.cat([a, torch.zeros(2, 3, 1, 6, dtype=torch.bool)], 2)
    coarse = from_bool(a).coarsen(2)
    assert coarse.block_q == 256
    assert torch.equal(coarse.to_bool(), halves[:, :, 0::2] | halves[:, :, 1::2])


def test_all_blocks_is_dense_and_shares_its_memory() -> None:
    lists = all_blocks(300, 500)
    assert (lists.blocks_q, lists.blocks_k) == (blocks_of(300, 128), blocks_of(500, 64)) == (3, 8)
    assert bool(lists.to_bool().all())
    assert lists.idx.untyped_storage().nbytes() == 8 * 4


def test_longest_first_orders_every_list_once() -> None:
    lists = longest_first(from_bool(random_map(3, 5, 6)), 2, 3)
    assert lists.order is not None
    assert sorted(lists.order.tolist()) == list(range(30))
    assert lists.cnt.flatten()[lists.order.long()].diff().le(0).all()


@pytest.mark.usefixtures("as_users_see_it")
def test_the_mask_of_flex_attention_is_right_even_uncompiled() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    kept = random_map(4, 2, 4)
    kept[..., 0] = True
    lists = from_bool(kept)
    q, k, v = torch.randn(3, 2, 3, 256, 16).unbind()
    tokens = kept.repeat_interleave(128, 2).repeat_interleave(64, 3)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=tokens)
    actual = flex_attention(q, k, v, block_mask=lists.to_flex_blockmask(256, 256))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("as_users_see_it")
def test_errors_say_what_was_given() -> None:
    scores = torch.ones(1, 1, 1, 4)
    with pytest.raises(ValueError, match="k=0: keep at least 1"):
        from_topk(scores, 0)
    with pytest.raises(ValueError, match=r"p=1.5: a share of the mass lies in 0 to 1"):
        from_topp(scores, 1.5)
    with pytest.raises(ValueError, match="min_keep=0"):
        from_topp(scores, 0.5, min_keep=0)
    with pytest.raises(ValueError, match="both must be the same"):
        union(from_topk(scores, 1), from_topk(scores, 1, block_q=64))
    with pytest.raises(ValueError, match="was given 0: join at least 1"):
        from_topk(scores, 1).coarsen(0)
