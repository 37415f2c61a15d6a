"""Orders of tokens: permutations, compact tiles, a curve without jumps, and there and back."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.kernels.permute import (
    frame_minor_order,
    gather_tokens,
    gilbert_order,
    inverse_order,
    scatter_tokens,
    tile_order,
    tile_sizes,
)

SIZES = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))


def jumps(order: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the distance in the grid, along its axes, between each token and the one before."""
    place = torch.stack([order // (height * width), order // width % height, order % width], 1)
    return (place[1:] - place[:-1]).abs().sum(1)


@given(grid=SIZES)
@settings(max_examples=20)
def test_the_curve_meets_every_token_once_and_never_jumps(grid: tuple[int, int, int]) -> None:
    order = gilbert_order(*grid)
    assert sorted(order.tolist()) == list(range(grid[0] * grid[1] * grid[2]))
    steps = jumps(order, *grid[1:])
    assert int(steps.max()) <= 2 if len(steps) else True


@pytest.mark.parametrize("grid", [(1, 8, 10), (2, 6, 4), (4, 2, 6), (4, 8, 10)])
def test_on_even_sides_the_curve_moves_to_neighbours_only(grid: tuple[int, int, int]) -> None:
    assert set(jumps(gilbert_order(*grid), *grid[1:]).tolist()) == {1}


def test_stretches_of_the_curve_are_more_compact_than_raster_rows() -> None:
    height = width = 32
    order = gilbert_order(1, height, width).reshape(-1, 64)
    rows, columns = order // width, order % width
    spread = torch.maximum(rows.amax(1) - rows.amin(1), columns.amax(1) - columns.amin(1))
    assert int(spread.max()) <= 15  # 64 tokens in raster order span all 32 columns


@given(grid=SIZES, tile=st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)))
@settings(max_examples=20)
def test_tiles_hold_every_token_once_and_their_sizes_say_so(
    grid: tuple[int, int, int], tile: tuple[int, int, int]
) -> None:
    order, sizes = tile_order(*grid, tile), tile_sizes(*grid, tile)
    count = grid[0] * grid[1] * grid[2]
    assert sorted(order.tolist()) == list(range(count)) and int(sizes.sum()) == count
    padded = tile_order(*grid, tile, pad=True)
    assert torch.equal(padded[padded >= 0], order)
    for part, size in zip(torch.split(order, sizes.tolist()), sizes.tolist(), strict=True):
        place = torch.stack(
            [part // (grid[1] * grid[2]), part // grid[2] % grid[1], part % grid[2]]
        )
        extent = place.amax(1) - place.amin(1) + 1
        assert int(extent.prod()) == size and (extent <= torch.tensor(tile)).all()


def test_frame_minor_puts_the_frames_of_a_place_together() -> None:
    order = frame_minor_order(3, 2, 2)
    assert (order.reshape(4, 3) % 4 == torch.arange(4)[:, None]).all()


@pytest.mark.parametrize("backend", ["torch", "interpret"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_there_and_back_is_the_identity(backend: str, dtype: torch.dtype) -> None:
    x = (100 * torch.randn(2, 2, 30, 5)).to(dtype).transpose(0, 1)
    order = tile_order(1, 5, 6, (1, 4, 4), pad=True)
    there = gather_tokens(x, order, backend=backend)
    assert there.shape == (2, 2, 64, 5) and not there[:, :, order < 0].any()
    assert torch.equal(scatter_tokens(there, order, 30, backend=backend), x)
    assert torch.equal(gather_tokens(there, inverse_order(order, 30), backend=backend), x)


@pytest.mark.parametrize("backend", ["torch", "interpret"])
def test_every_head_may_have_its_own_order(backend: str) -> None:
    x = torch.randn(2, 3, 20, 4)
    order = torch.rand(2, 3, 20).argsort(-1)
    there = gather_tokens(x, order, backend=backend)
    for b, h in itertools.product(range(2), range(3)):
        assert torch.equal(there[b, h], x[b, h, order[b, h]])
    assert torch.equal(scatter_tokens(there, order, 20, backend=backend), x)


def test_what_is_not_named_is_not_read() -> None:
    x = torch.randn(1, 1, 40, 4)
    x[:, :, 20:] = torch.nan
    order = torch.tensor([-1, 3, 19])
    for backend in ("torch", "interpret"):
        assert gather_tokens(x, order, backend=backend).isfinite().all()


def test_gradients_go_through_plain_torch() -> None:
    x = torch.randn(1, 1, 6, 2, requires_grad=True)
    gather_tokens(x, torch.tensor([5, 0, -1])).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None and x.grad[0, 0, :, 0].tolist() == [1, 0, 0, 0, 0, 1]


def test_a_remembered_order_belongs_to_its_grid() -> None:
    first, second = tile_order(1, 4, 4, (1, 2, 2)), tile_order(1, 4, 6, (1, 2, 2))
    assert len(first) == 16 and len(second) == 24
    assert torch.equal(tile_order(1, 4, 4, (1, 2, 2)), first)


@pytest.mark.usefixtures("as_users_see_it")
def test_errors_say_what_fits() -> None:
    x = torch.zeros(1, 2, 6, 4)
    with pytest.raises(ValueError, match=r"order \(1, 1, 6\) for tokens \(1, 2, 6, 4\)"):
        gather_tokens(x, torch.zeros(1, 1, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match="6 tokens and an order of 5"):
        scatter_tokens(x, torch.arange(5), 6)
    with pytest.raises(ValueError, match=r"tile_order was given sizes \(0, 4, 4, 1, 2, 2\)"):
        tile_order(0, 4, 4, (1, 2, 2))
