"""Masks against references of a few lines that loop over tokens or blocks."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.plugins.attention.block_sparse import METHODS
from skipstep.plugins.attention.layout import Layout
from skipstep.plugins.attention.methods.base import Choice, Scene
from skipstep.plugins.attention.methods.grid_permutation import phase_order
from skipstep.plugins.attention.methods.radial import radial_mask
from skipstep.plugins.attention.sparse_call import slots


def scene_of(
    name: str, layout: Layout, heads: int = 2, seed: int = 0, **options: Any
) -> tuple[Any, Scene]:
    """Return a method and the scene it sees: random tokens, in its own order."""
    found = METHODS[name](**{"block_q": 8, "block_k": 4, "force": True, **options})
    order, places = slots(found, layout, torch.device("cpu"), text_last=False)
    q, k, v = torch.randn(3, 1, heads, layout.tokens, 8, generator=torch.manual_seed(seed))
    keep, mass = found.budget()
    return found, Scene(
        q, k, v, layout.grid, places, found.block_q, found.block_k, 0.3, 0, keep, mass
    )


def mask_of(name: str, layout: Layout, **options: Any) -> tuple[Choice, Scene]:
    """Return what a method chooses, and for which scene."""
    found, scene = scene_of(name, layout, **options)
    return found.choose(scene), scene


def any_pair(scene: Scene, sees: Any) -> Tensor:
    """Loop over all pairs of tokens: a block is kept where any of its pairs is seen."""
    mask = torch.zeros(scene.nq, scene.nk, dtype=torch.bool)
    _, rows, columns = scene.grid
    cells = [
        (p // (rows * columns), p // columns % rows, p % columns) for p in scene.places.tolist()
    ]
    for i, here in enumerate(cells):
        for j, there in enumerate(cells):
            if sees(here, there):
                mask[i // scene.block_q, j // scene.block_k] = True
    return mask


@pytest.mark.parametrize("window", [(1, 1, 1), (3, 2, 1), (2, 3, 4)])
def test_sta_is_a_window_of_tiles_moved_inwards_at_the_border(window: Any) -> None:
    grid, tile = (3, 4, 6), (1, 2, 2)
    choice, scene = mask_of("sta", Layout(grid), tile=tile, window=window)
    counts = [-(-size // side) for size, side in zip(grid, tile, strict=True)]

    def sees(here: Any, there: Any) -> bool:
        for a, b, side, count, width in zip(here, there, tile, counts, window, strict=True):
            width = min(width, count)
            start = min(max(a // side - width // 2, 0), count - width)
            if not start <= b // side < start + width:
                return False
        return True

    assert torch.equal(choice.mask[0, 0], any_pair(scene, sees))


def test_radial_is_full_near_in_time_and_thins_out_with_it() -> None:
    """Frames of whole blocks, so that a block's piece of a frame is the block."""
    layout = Layout((12, 4, 8))
    _, scene = scene_of("radial", layout, block_q=8, block_k=8)
    mask = radial_mask(scene, 0.25)[0, 0]
    per_frame, n = 4, 32
    for i in range(scene.nq):
        for j in range(scene.nk):
            t = abs(i // per_frame - j // per_frame)
            undecayed = 2.0 ** (n.bit_length() - t.bit_length())
            every = math.ceil(8 / undecayed)
            near = abs(i % per_frame - j % per_frame) * 8 <= max(8, 0.25 * undecayed)
            expected = t <= 1 or j < per_frame or (near and t % every == 0)
            assert bool(mask[i, j]) == expected, (i, j)
    assert bool(mask[:, :per_frame].all())


def test_radial_finds_the_decay_for_a_share() -> None:
    layout = Layout((24, 4, 8))
    for keep in (0.3, 0.5):
        choice, _ = mask_of("radial", layout, keep=keep, block_q=8, block_k=8)
        density = float(choice.mask.float().mean())
        assert density >= keep or density == pytest.approx(keep, abs=0.2)


def test_draft_cuts_each_head_once_and_leaves_no_row_empty() -> None:
    choice, scene = mask_of("draft", Layout((1, 8, 8)), keep=0.25, tile=(1, 2, 4))
    q = scene.q.view(1, 2, scene.nq, 8, -1).mean(3)
    k = scene.k.view(1, 2, scene.nk, 4, -1).mean(3)
    scores = torch.softmax(q @ k.mT * 0.3, -1)
    for head in range(2):
        cut = scores[0, head].flatten().sort().values[-round(0.25 * scores[0, head].numel())]
        expected = scores[0, head] >= cut
        expected |= scores[0, head] == scores[0, head].amax(-1, keepdim=True)
        assert torch.equal(choice.mask[0, head], expected)


def test_sparge_keeps_rows_and_columns_of_unlike_blocks() -> None:
    choice, scene = mask_of("sparge", Layout((1, 8, 8)), keep=0.25, similarity=0.2)
    unit = torch.nn.functional.normalize(scene.k, dim=-1).view(1, 2, scene.nk, 4, -1)
    alike = (unit @ unit.mT).mean((-1, -2)) > 0.2
    assert bool(alike.any()) and not bool(alike.all())
    assert choice.mask.transpose(-1, -2)[~alike].all()


def test_sparge_with_unlike_keys_alone_keeps_all_and_is_no_nan() -> None:
    choice, _ = mask_of("sparge", Layout((1, 8, 8)), keep=0.25, similarity=1.0)
    assert choice.mask.all()


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_xattention_scores_are_sums_along_antidiagonals(stride: int) -> None:
    """The definition, one cell of the strided map at a time."""
    choice, scene = mask_of("xattention", Layout((1, 4, 8)), keep=0.3, stride=stride)
    n = 32
    cells = n // stride
    for head in range(2):
        q, k = scene.q[0, head], scene.k[0, head]
        logits = torch.zeros(cells, cells)
        for a in range(cells):
            for b in range(cells):
                for i in range(stride):
                    logits[a, b] += q[a * stride + stride - 1 - i] @ k[b * stride + i]
        p = torch.softmax(logits * 0.3 / stride, -1)
        size_q, size_k = 8 // stride, 4 // stride
        scores = p.view(scene.nq, size_q, scene.nk, size_k).sum((1, 3))
        best = scores.topk(round(0.3 * scene.nk), -1).indices
        assert choice.mask[0, head].sum(-1).eq(best.shape[1]).all()
        assert choice.mask[0, head].gather(-1, best).all()


def test_svg1_tells_spatial_heads_from_temporal_ones() -> None:
    """One head attends inside its frame, the other to its place in all frames."""
    grid = (4, 4, 4)
    layout = Layout(grid)
    found, scene = scene_of("svg1", layout, keep=0.3)
    coordinates = scene.coordinates()
    frames = torch.nn.functional.one_hot(coordinates[:, 0], 4).float()
    places = torch.nn.functional.one_hot(scene.places % 16, 16).float()
    spatial = torch.nn.functional.pad(frames, (0, 12))
    x = 6 * torch.stack([spatial, places])[None]
    scene = Scene(x, x, torch.randn(x.shape), grid, scene.places, 8, 4, 1.0, 0, 0.3, None)
    choice = found.choose(scene)
    assert choice.q_order is not None
    raster = torch.arange(64)
    assert torch.equal(choice.q_order[0, 0], raster)
    assert torch.equal(choice.q_order[0, 1], raster.view(4, 16).T.flatten())


def test_grid_heads_find_the_stride_of_their_attention() -> None:
    """Three heads: near tokens, one row on, one frame on."""
    grid = (4, 4, 6)
    layout = Layout(grid)
    found, scene = scene_of("mminference", layout, heads=3, keep=0.25)
    raster = scene.places
    groups = [raster // 12, raster % 6, raster % 24]
    one_hot = [torch.nn.functional.one_hot(g, 96).float() for g in groups]
    x = 6 * torch.stack(one_hot)[None]
    scene = Scene(x, x, x, grid, scene.places, 8, 4, 1.0, 0, 0.125, None)
    choice = found.choose(scene)
    assert choice.q_order is not None
    for head, stride in enumerate((1, 6, 24)):
        expected = phase_order(96, 96, stride, torch.device("cpu"))
        assert torch.equal(choice.q_order[0, head], expected), head


def test_svg2_puts_like_tokens_together() -> None:
    """Two kinds of tokens, mixed at random, come out sorted, and each attends to its own kind."""
    layout = Layout((1, 8, 8))
    found, scene = scene_of("svg2", layout, heads=1, q_clusters=2, k_clusters=2, keep=0.5)
    kind = torch.randperm(64, generator=torch.manual_seed(0)) % 2
    x = (torch.nn.functional.one_hot(kind, 8).float() * 8)[None, None]
    x = x + 0.1 * torch.randn(x.shape, generator=torch.manual_seed(1))
    scene = Scene(x, x, x, layout.grid, scene.places, 8, 4, 1.0, 0, 0.5, None)
    choice = found.choose(scene)
    assert choice.q_order is not None and choice.k_order is not None
    kinds = [kind[order[0, 0]] for order in (choice.q_order, choice.k_order)]
    for ordered in kinds:
        assert int((ordered[1:] != ordered[:-1]).sum()) == 1
    same = kinds[0][::8, None] == kinds[1][::4]
    assert torch.equal(choice.mask[0, 0], same)


def test_hip_finds_the_best_blocks_when_neighbours_are_alike() -> None:
    layout = Layout((1, 16, 16))
    found, scene = scene_of("hip", layout, heads=1, keep=0.125, levels=3)
    place = torch.arange(256) / 256 * 2 * math.pi
    x = torch.stack([place.cos(), place.sin()], -1)[None, None] * 4
    scene = Scene(x, x, x, layout.grid, scene.places, 8, 4, 1.0, 0, 0.125, None)
    mask = found.choose(scene).mask[0, 0]
    exact = torch.softmax(x @ x.mT, -1)[0, 0].view(32, 8, 64, 4).sum((1, 3))
    best = torch.zeros_like(mask).scatter(-1, exact.topk(8, -1).indices, True)
    assert float((mask & best).sum() / best.sum()) > 0.9


@pytest.mark.parametrize("pattern", ["a_shape", "vertical_slash", "block"])
def test_minference_shapes_keep_the_same_share(pattern: str) -> None:
    choice, scene = mask_of("minference", Layout((1, 8, 16)), keep=0.25, pattern=pattern)
    assert choice.mask.sum(-1).eq(round(0.25 * scene.nk)).all()
    if pattern == "a_shape":
        assert choice.mask[..., 0].all()


def test_flexprefill_uses_lines_where_means_mislead() -> None:
    """Means of blocks of opposite tokens are zero: their map is flat, the exact one is not."""
    layout = Layout((1, 8, 8))
    found, scene = scene_of("flexprefill", layout, heads=1, mass=0.9)
    x = torch.zeros(1, 1, 64, 2)
    x[..., 0] = torch.tensor([8.0, -8.0]).repeat(32)
    x[:, :, ::8, 1] = 4.0
    misled = Scene(x, x, x, layout.grid, scene.places, 8, 4, 1.0, 0, None, 0.9)
    flat = Scene(x * 0, x, x, layout.grid, scene.places, 8, 4, 1.0, 0, None, 0.9)
    by_lines, by_means = found.choose(misled).mask, found.choose(flat).mask
    assert not torch.equal(by_lines, by_means)
    assert float(by_means.float().mean()) == pytest.approx(0.9, abs=0.05)
