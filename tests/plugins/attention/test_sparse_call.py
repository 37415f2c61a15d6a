"""One sparse call: padding, repairs, break-even, and what the report is told."""

from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.plugins.attention.denoiser_call import padding_of
from skipstep.plugins.attention.layout import Layout, find_grid, grid_for
from skipstep.plugins.attention.methods.asa import ASA
from skipstep.plugins.attention.methods.sparge import Sparge
from skipstep.plugins.attention.sparse_call import attend_sparsely

LAYOUT = Layout((1, 12, 12), text=6, text_first=True)
SMALL: dict[str, Any] = {"block_q": 16, "block_k": 8, "force": True}


def tokens(n: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens whose attention is smooth over the picture, as a trained model's is."""
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(3, batch, 2, n, 8, generator=generator).cumsum(-2) / 4
    q, k, v = walk.unbind()
    return q, k, v


def error(found: Tensor | None, expected: Tensor) -> float:
    assert found is not None
    return float((found - expected).norm() / expected.norm())


def test_padding_behind_the_text_is_never_attended_to() -> None:
    q, k, v = tokens(LAYOUT.tokens)
    kept = torch.ones(2, LAYOUT.tokens, dtype=torch.bool)
    kept[0, 4:6] = False  # the end of the first sample's text, which stands in front
    lens = padding_of(kept[:, None, None], LAYOUT)
    assert lens is not None and lens.tolist() == [148, 150]
    outcome = attend_sparsely(Sparge(keep=1.0, **SMALL), q, k, v, LAYOUT, kv_lens=lens)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, kept[:, None, None])
    assert error(outcome.output, expected) < 1e-5
    poisoned = k.clone(), v.clone()
    for x in poisoned:
        x[0, :, 4:6] = 1e6
    again = attend_sparsely(Sparge(keep=1.0, **SMALL), q, *poisoned, LAYOUT, kv_lens=lens)
    assert error(again.output, expected) < 1e-5


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (torch.ones(1, 1, 1, 150, dtype=torch.bool), [150]),
        (torch.zeros(2, 1, 1, 150), [150, 150]),
        (torch.zeros(1, 1, 150, 150), [150]),
        (torch.full((1, 1, 1, 150), 1.0), None),
        (torch.eye(150, dtype=torch.bool)[None, None], None),
        (torch.ones(1, 1, 1, 149, dtype=torch.bool), None),
    ],
)
def test_a_mask_is_padding_or_it_is_not(mask: Tensor, expected: list[int] | None) -> None:
    found = padding_of(mask, LAYOUT)
    assert (None if found is None else found.tolist()) == expected


def test_a_hole_in_the_picture_is_no_padding() -> None:
    kept = torch.ones(1, 1, 1, 150, dtype=torch.bool)
    kept[..., 40] = False
    assert padding_of(kept, LAYOUT) is None
    kept = torch.ones(1, 1, 1, 150, dtype=torch.bool)
    kept[..., 0] = False  # the start of the text instead of its end
    assert padding_of(kept, LAYOUT) is None


def test_the_delta_correction_comes_nearer_to_dense_attention() -> None:
    q, k, v = tokens(LAYOUT.tokens)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    plain, delta, every = (
        attend_sparsely(Sparge(keep=0.2, delta=stride, **SMALL), q, k, v, LAYOUT).output
        for stride in (0, 4, 1)
    )
    assert error(delta, expected) < 0.7 * error(plain, expected)
    assert error(every, expected) < 1e-5
    assert delta is not None
    assert error(delta[:, :, :6], expected[:, :, :6]) < 1e-5, "text rows are exact already"


def test_pooled_keys_count_for_what_was_left_out() -> None:
    """Keys that are equal within each block: their means are they, so pooling alone is exact."""
    layout = Layout((1, 8, 8))
    q, k, v = tokens(64)
    k, v = (x[:, :, ::8].repeat_interleave(8, dim=2) for x in (k, v))

    class Raster(ASA):
        """The same in raster order, where blocks are rows."""

        def order(self, grid: Any, device: Any) -> None:
            return None

    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    plain, pooled = (
        attend_sparsely(Raster(keep=0.125, samples=4, pooled=p, **SMALL), q, k, v, layout).output
        for p in (False, True)
    )
    assert error(pooled, expected) < 0.6 * error(plain, expected)


@pytest.mark.parametrize("options", [{"delta": 4}, {"samples": 4, "pooled": True}])
def test_what_makes_up_for_the_rest_sees_no_padding(options: dict[str, Any]) -> None:
    """A sample that ends early is what it is on its own, whatever its padding holds.

    All blocks are kept, since their choice may see padding; the delta is of dense attention then,
    and pooled keys change what is kept.
    """
    layout, short = Layout((1, 8, 8), text=16), Layout((1, 8, 8), text=8)
    q, k, v = tokens(80)
    found = ASA(keep=1.0, **SMALL, **options)
    for x in (k, v):
        x[1, :, 72:] = 100.0
    lens = torch.tensor([80, 72])
    both = attend_sparsely(found, q, k, v, layout, kv_lens=lens).output
    q, k, v = (x[1:, :, :72] for x in (q, k, v))
    alone = attend_sparsely(found, q, k, v, short).output
    assert both is not None
    assert error(alone, both[1:, :, :72]) < 1e-5


def test_above_break_even_a_sample_is_dense_and_its_neighbours_are_not() -> None:
    """One sample whose blocks are unlike, so that all are kept, beside one that is not."""
    q, k, v = tokens(LAYOUT.tokens)
    k[0] = torch.randn(k[0].shape, generator=torch.manual_seed(0)) * 4
    options = {**SMALL, "force": False, "similarity": 0.5, "keep": 0.2}
    outcome = attend_sparsely(Sparge(**options), q, k, v, LAYOUT)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert outcome.output is not None
    assert error(outcome.output[0], expected[0]) < 1e-5
    assert error(outcome.output[1], expected[1]) > 1e-3
    assert attend_sparsely(Sparge(**options), q[:1], k[:1], v[:1], LAYOUT).output is None


def test_the_probed_mass_is_the_exact_one_when_all_rows_are_probed() -> None:
    q, k, v = tokens(144)
    found = Sparge(keep=0.3, probe_rows=1024, **SMALL)
    outcome = attend_sparsely(found, q, k, v, Layout((1, 12, 12)))
    p = torch.softmax(q @ k.mT / 8**0.5, -1)
    kept = outcome.mask.repeat_interleave(16, -2).repeat_interleave(8, -1)
    assert outcome.mass is not None
    assert float(outcome.mass) == pytest.approx(float((p * kept).sum(-1).mean()), abs=1e-5)


@pytest.mark.parametrize(
    ("named", "config", "expected"),
    [
        ({"x": torch.zeros(1, 4, 6, 8)}, {"patch_size": 2}, (1, 3, 4)),
        ({"x": torch.zeros(1, 4, 6, 8)}, {}, (1, 6, 8)),
        ({"x": torch.zeros(1, 16, 5, 6, 8)}, {"patch_size": (1, 2, 2)}, (5, 3, 4)),
        ({"x": torch.zeros(1, 5, 16, 6, 8)}, {"patch_size": 2, "in_channels": 16}, (5, 3, 4)),
        ({"x": torch.zeros(1, 16, 4, 6, 8)}, {"patch_size": 2, "patch_size_t": 2}, (2, 3, 4)),
        ({"x": [torch.zeros(16, 1, 6, 8)]}, {"all_patch_size": (2,)}, (1, 3, 4)),
        ({"x": torch.zeros(1, 24, 4), "num_frames": 2, "height": 3, "width": 4}, {}, (2, 3, 4)),
        ({"x": torch.zeros(1, 12, 4), "img_shapes": [[(1, 3, 4)]]}, {}, (1, 3, 4)),
        ({"x": torch.zeros(1, 12, 4), "img_shapes": [[(1, 3, 2), (1, 3, 2)]]}, {}, None),
        (
            {
                "x": torch.zeros(1, 12, 4),
                "img_ids": torch.cartesian_prod(
                    torch.zeros(1), torch.arange(3.0), torch.arange(4.0)
                ),
            },
            {},
            (1, 3, 4),
        ),
        ({"x": torch.zeros(1, 12, 4)}, {}, None),
        ({"x": torch.zeros(1)}, {}, None),
    ],
)
def test_the_grid_is_found_from_the_call(named: Any, config: Any, expected: Any) -> None:
    assert find_grid(named, config) == expected


def test_levels_of_a_unet_are_coarser_grids() -> None:
    assert grid_for(16 * 12, (1, 32, 24), has_levels=True) == (1, 16, 12)
    assert grid_for(8 * 6, (1, 32, 24), has_levels=True) == (1, 8, 6)
    assert grid_for(5, (1, 32, 24), has_levels=True) is None
    assert grid_for(16 * 12, (1, 32, 24), has_levels=False) is None
