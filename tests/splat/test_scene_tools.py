"""Level of detail, streaming and language: closed forms on small scenes, and what they refuse."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from skipstep.kernels.gs_project import rotation_matrices
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.capture import Capture
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.language import lift_features, similarity
from skipstep.pipelines.splat.lod import LevelsOfDetail, merged
from skipstep.pipelines.splat.stream import WEIGHT, StreamingReconstructor, fuse, insertion_chance

torch.set_num_threads(1)

Scene = Callable[..., Gaussians]
Around = Callable[..., Cameras]


def test_a_merged_gaussian_has_the_moments_of_its_parts(scene: Scene) -> None:
    gaussians = scene(40).to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    whole = merged(gaussians, 100.0)
    # The grid's corner is at the origin: at most eight cells are occupied.
    assert len(whole) <= 8
    chosen = (gaussians.means > 0).all(-1)
    part = gaussians[chosen]
    one = merged(part, 100.0)
    w = part.opacities * part.scales.prod(-1) / part.scales.amin(-1)
    # Draw from the mixture: its covariance is that of the merged Gaussian.
    pick = torch.multinomial(w, 200_000, replacement=True, generator=generator)
    M = rotation_matrices(part.quats) * part.scales[:, None, :]
    noise = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    drawn = part.means[pick] + torch.einsum("nij,nj->ni", M[pick], noise)
    torch.testing.assert_close(one.means[0], drawn.mean(0), rtol=0, atol=5e-3)
    N = rotation_matrices(one.quats[0]) * one.scales[0]
    torch.testing.assert_close(N @ N.T, drawn.T.cov(), rtol=0, atol=5e-3)


def test_far_views_are_drawn_with_a_fraction_of_the_gaussians(scene: Scene) -> None:
    gaussians = scene(3000, opacity=(0.6, 0.95))
    near, far = (Cameras.orbit(2, radius=radius, width=48) for radius in (1.6, 24.0))
    # The far camera's lens is longer, so that there is something to see.
    far = replace(far, K=torch.tensor([[96.0, 0, 24], [0, 96.0, 24], [0, 0, 1]]).repeat(2, 1, 1))
    levels = LevelsOfDetail.build(gaussians, focal=96.0, levels=4, pixels=2.0)
    counts = [len(levels.seen_from(cameras.centres[0])) for cameras in (near, far)]
    assert counts[0] == len(gaussians) and counts[1] < len(gaussians) / 3
    torch.testing.assert_close(levels.render(near).rgb, gaussians.render(near).rgb)
    whole, few = gaussians.render(far), levels.render(far, outputs=("depth",))
    assert (whole.rgb - few.rgb).square().mean() < 10**-3
    assert few.depth is not None and few.depth.shape == few.alpha.shape


@pytest.mark.parametrize("d", [1.0, 1.5, 2.5])
def test_opacity_fades_between_d_max_and_twice_that(d: float) -> None:
    one = Gaussians.from_colours(
        torch.zeros(1, 3),
        torch.tensor([[1.0, 0, 0, 0]]),
        torch.full((1, 3), 0.1),
        torch.tensor([0.8]),
        torch.zeros(1, 3),
    )
    levels = LevelsOfDetail([one, one], [1.0, float("inf")])
    seen = levels.seen_from(torch.tensor([d, 0.0, 0.0])).opacities
    fine, coarse = min(max(2 - d, 0), 1) * 0.8, min(max(d - 1, 0), 1) * 0.8
    expected = [value for value in (fine, coarse) if value > 0]
    torch.testing.assert_close(seen, torch.tensor(expected))


def test_levels_of_nothing_are_refused(scene: Scene) -> None:
    with pytest.raises(ValueError, match="0 levels of 4 Gaussians"):
        LevelsOfDetail.build(scene(4), focal=50.0, levels=0)


def wall(cameras: Cameras) -> Capture:
    """Photograph a many-coloured wall at a depth of about 3."""
    x, y = torch.meshgrid(torch.linspace(-2, 2, 60), torch.linspace(-2, 2, 60), indexing="ij")
    means = torch.stack([x, y, 3 + 0.2 * torch.sin(2 * x)], -1).reshape(-1, 3)
    colours = torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(0))
    colours = colours.repeat_interleave(3, 0).repeat_interleave(3, 1).reshape(-1, 3)
    gaussians = Gaussians.from_colours(
        means,
        torch.tensor([1.0, 0, 0, 0]).repeat(3600, 1),
        torch.full((3600, 3), 0.04),
        torch.full((3600,), 0.95),
        colours,
    )
    pictures = gaussians.render(cameras).rgb.permute(0, 3, 1, 2).clamp(0, 1)
    return Capture(pictures, cameras, [str(view) for view in range(len(cameras))])


def test_a_scene_grows_view_by_view() -> None:
    offsets = torch.tensor([[-0.3, 0, 0], [-0.1, 0.1, 0], [0.1, -0.1, 0], [0.3, 0, 0], [0, 0.2, 0]])
    cameras = Cameras.look_at(offsets, target=torch.tensor([0.0, 0, 3]), width=48, height=36)
    capture = wall(cameras)
    stream = StreamingReconstructor(near=1.5, far=6.0, steps=8)
    assert stream.add(capture[[0]]) == {"fused": 0, "inserted": 0}
    counts = [stream.add(capture[[view]]) for view in (1, 2, 3)]
    assert counts[0]["inserted"] > 800
    # Later views know most of the wall: they fuse more than they insert.
    assert all(later["fused"] > later["inserted"] for later in counts[1:])
    assert stream.scene is not None and stream.scene.features[WEIGHT].max() >= 3
    rgb = stream.scene.render(capture.cameras[4]).rgb[0].permute(2, 0, 1)
    inner = slice(6, -6)
    off = (rgb - capture.pictures[4])[:, inner, inner].square().mean()
    assert float(-10 * torch.log10(off)) > 17
    with pytest.raises(ValueError, match="2 views were given: add them one by one"):
        stream.add(capture[[0, 1]])
    with pytest.raises(ValueError, match="differs in size"):
        stream.add(capture[[0]].resized(24, 18))
    with pytest.raises(ValueError, match="depths must be 0 < near < far"):
        StreamingReconstructor(near=2.0, far=1.0)


def test_detail_is_inserted_where_the_rendering_lacks_it() -> None:
    plain, checked = torch.full((3, 16, 16), 0.5), torch.full((3, 16, 16), 0.5)
    checked[:, 4:12:2, 4:12] = 1.0
    missing = insertion_chance(checked, plain)
    assert missing[6:10, 6:10].min() > 0.5 and missing[:2].max() < 0.03
    assert insertion_chance(checked, checked).max() < 0.03


def test_fusion_is_a_running_mean_of_depth() -> None:
    camera = Cameras.look_at(torch.tensor([[0.0, 0, -2.0]]), width=9)
    seen = Gaussians.from_colours(
        torch.tensor([[0.0, 0, 0], [0.0, 0, 5.0]]),
        torch.tensor([[1.0, 0, 0, 0]]).repeat(2, 1),
        torch.full((2, 3), 0.1),
        torch.full((2,), 0.8),
        torch.zeros(2, 3),
    )
    seen = replace(seen, features={WEIGHT: torch.tensor([[3.0], [3.0]])})
    view = Capture(torch.ones(1, 3, 9, 9), camera, ["x"])
    depth, trusted = torch.full((9, 9), 2.08), torch.ones(9, 9, dtype=torch.bool)
    fused, count = fuse(seen, view, depth, trusted, 0.05)
    assert count == 1
    # (3 x 2 + 2.08) / 4, and a quarter of the way to white; what lies elsewhere stays.
    torch.testing.assert_close(fused.means[0, 2], torch.tensor(0.02), rtol=0, atol=1e-5)
    torch.testing.assert_close(fused.means[1], seen.means[1])
    colour = fused.render(camera).rgb[0, 4, 4]
    assert fused.features[WEIGHT].flatten().tolist() == [4.0, 3.0]
    assert colour.min() > 0.2


def test_a_query_finds_the_gaussians_that_show_where_its_feature_is(
    scene: Scene, around: Around
) -> None:
    one, other = scene(120, seed=1), scene(120, seed=2)
    both = Gaussians.cat(
        [
            replace(part, means=0.4 * part.means + torch.tensor([aside, 0.0, 0.0]))
            for part, aside in ((one, -0.5), (other, 0.5))
        ]
    )
    cameras = around(3, width=40, height=40)
    label = torch.zeros(240, 2)
    label[:120, 0] = 1.0
    label[120:, 1] = 1.0
    truth = replace(both, features={"label": label})
    maps = truth.render(cameras, outputs=("features",)).features["label"]
    lifted = lift_features(both, maps, cameras)
    left = similarity(lifted, torch.tensor([1.0, 0.0]))
    shown = lifted.features["language"].norm(dim=-1) > 0
    assert shown.float().mean() > 0.8
    right = similarity(lifted, torch.tensor([0.0, 1.0]))
    correct = torch.where(torch.arange(240) < 120, left > right, right > left)
    assert correct[shown].float().mean() > 0.97
    with pytest.raises(ValueError, match="no feature 'colour' \\(known: language\\)"):
        similarity(lifted, torch.ones(2), name="colour")
    with pytest.raises(ValueError, match="a query of 3 values and features of 2"):
        similarity(lifted, torch.ones(3))
    with pytest.raises(ValueError, match="resize the cameras to the maps"):
        lift_features(both, maps[:2], cameras)
