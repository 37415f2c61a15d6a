"""Maps of tokens to slots: weights, there and back, and what each method puts together."""

import math
from collections.abc import Hashable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skipstep.plugins.tokens.base import Place
from skipstep.plugins.tokens.evit import EViT
from skipstep.plugins.tokens.spatten import SpAtten
from skipstep.plugins.tokens.token_map import (
    TokenMap,
    keep_and_fuse,
    reduce_tokens,
    restore_tokens,
    stack,
)
from skipstep.plugins.tokens.tome import ToMe, destinations, merge_similar
from skipstep.plugins.tokens.zipvl import ZipVL, smallest_count


def random_importance(n: int, seed: int = 0) -> torch.Tensor:
    """Return importance that sums to 1."""
    return torch.softmax(torch.randn(n, generator=torch.Generator().manual_seed(seed)), 0)


def check(map_: TokenMap, n: int) -> None:
    """Demand what every map keeps to: full slots, weights that sum to 1, places inside."""
    assert sorted(set(map_.slots.tolist())) == list(range(map_.count))
    sums = torch.zeros(map_.count).index_add_(0, map_.slots, map_.weights)
    torch.testing.assert_close(sums, torch.ones(map_.count))
    assert ((map_.places >= 0) & (map_.places < n)).all()
    # A slot stands where one of its own tokens does.
    assert torch.equal(map_.slots[map_.places], torch.arange(map_.count))


@given(n=st.integers(2, 60), count=st.integers(0, 30), seed=st.integers(0, 20))
def test_merging_takes_exactly_that_many_tokens_away(n: int, count: int, seed: int) -> None:
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    count = min(count, n - len(destinations(n, None)))
    map_ = merge_similar(x, count, None)
    check(map_, n)
    assert map_.count == n - count


def test_twins_are_merged_first_and_lose_nothing() -> None:
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    grid = (1, 4, 4)
    x[[1, 4, 5]] = x[0].clone()  # one 2 x 2 cell of equal tokens
    map_ = merge_similar(x, 3, grid)
    assert set(map_.slots[[0, 1, 4, 5]].tolist()) == {0}
    fewer = reduce_tokens(x[None], stack([map_]))
    torch.testing.assert_close(restore_tokens(fewer, stack([map_]))[0], x)


def test_destinations_are_one_token_of_every_cell() -> None:
    assert destinations(24, (1, 4, 6)).tolist() == [0, 2, 4, 12, 14, 16]
    assert destinations(24, (2, 3, 4)).tolist() == [0, 2, 8, 10, 12, 14, 20, 22]
    assert destinations(24, (1, 5, 5)).tolist() == list(range(0, 24, 4)), "not this grid"


@given(n=st.integers(2, 60), share=st.floats(0.05, 1), seed=st.integers(0, 20))
def test_keeping_keeps_the_most_important_and_fuses_by_importance(
    n: int, share: float, seed: int
) -> None:
    importance, count = random_importance(n, seed), math.ceil(share * n)
    map_ = keep_and_fuse(importance, count)
    check(map_, n)
    kept = map_.slots < count
    assert importance[kept].min() >= (importance[~kept].max() if (~kept).any() else 0)
    x = torch.randn(1, n, 3)
    fewer = reduce_tokens(x, stack([map_]))
    assert torch.equal(fewer[0, :count], x[0, kept])
    if (~kept).any():
        fused = (x[0, ~kept] * importance[~kept, None]).sum(0) / importance[~kept].sum()
        torch.testing.assert_close(fewer[0, count], fused)


def test_tokens_without_importance_are_fused_in_equal_parts() -> None:
    map_ = keep_and_fuse(torch.tensor([1.0, 0.0, 0.0]), 1)
    assert map_.weights.tolist() == [1.0, 0.5, 0.5]


@given(n=st.integers(1, 50), mass=st.floats(0.01, 1), seed=st.integers(0, 30))
def test_the_smallest_count_reaches_the_mass_and_one_less_does_not(
    n: int, mass: float, seed: int
) -> None:
    importance = random_importance(n, seed).double()
    count = smallest_count(importance, mass)
    held = importance.sort(descending=True).values.cumsum(0)
    assert held[count - 1] >= mass * held[-1] * (1 - 1e-12)
    assert count == 1 or held[count - 2] < mass * held[-1]


def test_what_left_the_cascade_never_comes_back() -> None:
    plugin = SpAtten(keep=0.25)
    memory: dict[Hashable, Any] = {}
    gone = torch.zeros(16, dtype=torch.bool)
    counts = []
    for layer in range(5):
        place = Place(layer / 4, None, memory)
        map_ = plugin.choose(torch.randn(16, 4), random_importance(16, layer), place)
        if map_ is None:
            continue
        check(map_, 16)
        left = map_.slots == map_.count - 1
        assert (left | ~gone).all()
        gone = left
        counts.append(map_.count - 1)
    assert counts == [13, 10, 7, 4]


def test_each_method_saves_what_it_says() -> None:
    x, importance = torch.randn(40, 8), random_importance(40)
    last = Place(1.0, (1, 5, 8))
    counts = {
        "tome": ToMe(ratio=0.5).choose(x, None, last),
        "evit": EViT(keep=0.5).choose(x, importance, last),
        "spatten": SpAtten(keep=0.5).choose(x, importance, Place(1.0, None)),
    }
    found = {name: map_.count for name, map_ in counts.items() if map_ is not None}
    assert found == {"tome": 20, "evit": 21, "spatten": 21}
    flat = ZipVL(mass=0.5).choose(x, torch.full((40,), 1 / 40), last)
    peaked = ZipVL(mass=0.5).choose(x, torch.tensor([0.9] + [0.1 / 39] * 39), last)
    assert flat is not None and peaked is not None and (flat.count, peaked.count) == (21, 2)


def test_half_precision_is_averaged_in_fp32() -> None:
    x = torch.full((1, 3, 1), 256.0, dtype=torch.bfloat16)
    x[0, 0] = 254
    map_ = TokenMap(torch.tensor([[0, 0, 0]]), torch.full((1, 3), 1 / 3), torch.tensor([[0]]))
    assert reduce_tokens(x, map_).tolist() == [[[pytest.approx(256, abs=2)]]]
    assert reduce_tokens(x, map_).dtype == torch.bfloat16
