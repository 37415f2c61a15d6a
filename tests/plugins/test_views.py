"""View plugins: anchors, groups, exact equalities, and what a reconstructor refuses."""

from functools import cache
from typing import Any

import pytest
import torch

from skipstep.pipelines.splat.objects import input_cameras, new_object, novel_cameras, picture
from skipstep.pipelines.splat.pipeline import GaussianReconstructionPipeline, load_reconstructor
from skipstep.plugins.errors import Incompatible
from skipstep.plugins.views.lga import grouped, ungrouped
from skipstep.plugins.views.zpressor import (
    compared_with,
    farthest_points,
    press,
    supports_of,
)

torch.set_num_threads(1)

OBJECT = 10**7 + 3


@cache
def model() -> Any:
    """Load the shipped reconstructor once."""
    return load_reconstructor()


def pipeline() -> GaussianReconstructionPipeline:
    """Build a pipeline around it."""
    return GaussianReconstructionPipeline(model())


@cache
def views(count: int) -> tuple[torch.Tensor, Any]:
    """Return pictures with alpha of one object and their cameras, at 32 pixels."""
    cameras = input_cameras(OBJECT, views=count, size=32)
    return picture(new_object(OBJECT), cameras)[0].float() / 255, cameras


def test_anchors_are_spread_and_every_other_view_supports_its_nearest() -> None:
    centres = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    anchors = farthest_points(centres, 5)
    assert len(set(anchors.tolist())) == 5
    # Greedy cover: no view is farther from the anchors than the anchors are from each other.
    between = torch.cdist(centres[anchors], centres[anchors]) + 1e6 * torch.eye(5)
    nearest = torch.cdist(centres, centres[anchors])
    assert nearest.amin(1).max() <= between.min()
    supports, is_there = supports_of(centres, anchors)
    assert sorted(supports[is_there].tolist() + anchors.tolist()) == list(range(20))
    for i, group in enumerate(supports):
        assert bool((nearest[group[is_there[i]]].argmin(1) == i).all())
    rows = compared_with(centres, anchors)
    assert all(row[view] != view for row in rows for view in range(20))


@torch.no_grad()
def test_without_supports_pressing_is_plain_fusion_of_the_anchors() -> None:
    tokens = torch.randn(2, 6, 4, 128, generator=torch.Generator().manual_seed(0))
    anchors = torch.tensor([4, 1, 3])
    none = torch.zeros(3, 1, dtype=torch.bool)
    pressed = press(model().transformer_blocks, tokens, anchors, none.long(), none)
    torch.testing.assert_close(pressed, model().fuse(tokens[:, anchors]), rtol=0, atol=1e-4)


@torch.no_grad()
def test_an_anchor_hears_its_own_supports_and_no_others() -> None:
    tokens = torch.randn(1, 4, 4, 128, generator=torch.Generator().manual_seed(0))
    anchors, supports = torch.tensor([0, 1]), torch.tensor([[2], [3]])
    there = torch.ones(2, 1, dtype=torch.bool)
    block = model().transformer_blocks[:1]
    before = press(block, tokens, anchors, supports, there)
    tokens[:, 3] += 1
    after = press(block, tokens, anchors, supports, there)
    torch.testing.assert_close(after[:, 0], before[:, 0], rtol=0, atol=0)
    assert not torch.allclose(after[:, 1], before[:, 1])


@torch.no_grad()
def test_grouped_attention_equals_masked_attention_among_all() -> None:
    v, rows, columns, g = 3, 4, 6, 2
    tokens = torch.randn(2, v * rows * columns, 128, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        ungrouped(grouped(tokens, v, rows, columns, g), v, rows, columns, g), tokens
    )
    block = model().transformer_blocks[0]
    groups = ungrouped(block(grouped(tokens, v, rows, columns, g)), v, rows, columns, g)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    group = ((y % g) * g + x % g).flatten().repeat(v)
    mask = torch.where(group[:, None] == group, 0.0, -torch.inf).expand(2, -1, -1)
    dense = block(tokens, attention_mask=mask)
    torch.testing.assert_close(groups, dense, rtol=0, atol=1e-4)


def test_more_views_than_the_model_takes_work_when_pressed() -> None:
    pictures, cameras = views(18)
    pipe = pipeline()
    with pytest.raises(ValueError, match='enable_plugin\\("zpressor"\\) takes more'):
        pipe(pictures, cameras, resolution=32)
    pipe.enable_plugin("zpressor", anchors=4)
    pressed = pipe(pictures, cameras, resolution=32).gaussians
    report = pipe.plugin_report()
    assert report is not None and "pressed 18 views into 4 anchors" in str(report.notes)
    assert 0 < len(pressed) <= 4 * 16 * 16
    # Two scenes that differ in one support alone differ.
    novel = novel_cameras(OBJECT, views=2, size=32)
    wanted = picture(new_object(OBJECT), novel)[0][:, :3].float() / 255
    rgb = pressed.render(novel).rgb.permute(0, 3, 1, 2)
    assert (rgb - wanted).square().mean() < 0.02
    pipe.disable_plugins()
    plain = pipe(pictures[::5], cameras[[0, 5, 10, 15]], resolution=32).gaussians
    pipe.enable_plugin("zpressor", anchors=4)
    idle = pipe(pictures[::5], cameras[[0, 5, 10, 15]], resolution=32).gaussians
    torch.testing.assert_close(idle.means, plain.means, rtol=0, atol=0)


def test_groups_of_stride_one_are_plain_fusion() -> None:
    pictures, cameras = views(4)
    pipe = pipeline()
    plain = pipe(pictures, cameras, resolution=32).gaussians
    pipe.enable_plugin("lga", stride=1, every=1)
    same = pipe(pictures, cameras, resolution=32).gaussians
    torch.testing.assert_close(same.means, plain.means, rtol=0, atol=1e-5)
    pipe.enable_plugin("lga", stride=2, every=1)
    other = pipe(pictures, cameras, resolution=32).gaussians
    assert len(other) != len(plain) or not torch.allclose(other.means, plain.means)
    pipe.enable_plugin("lga", stride=3)
    with pytest.raises(ValueError, match="a grid of 4 x 4 tokens has no groups of every 3-th"):
        pipe(pictures, cameras, resolution=32)


@pytest.mark.parametrize("name", ["easycache", "solver", "block_sparse", "tome"])
def test_one_forward_pass_has_no_steps_to_skip(name: str) -> None:
    with pytest.raises(Incompatible, match="one forward pass, so there are no steps to skip"):
        pipeline().enable_plugin(name)


def test_a_pipeline_that_draws_has_no_views() -> None:
    from skipstep.testing import tiny_pipeline

    with pytest.raises(Incompatible, match="fusing views needs a reconstructor"):
        tiny_pipeline("pixart").pipe.enable_plugin("zpressor")
