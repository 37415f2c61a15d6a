"""The rasteriser: closed forms, the dense float64 definition, gsplat, order, sizes, saturation."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from skipstep.kernels import gs_raster
from skipstep.kernels.gs_bin import tile_lists
from skipstep.kernels.gs_harmonics import harmonics_basis, harmonics_to_colours
from skipstep.kernels.gs_project import project_gaussians
from skipstep.kernels.gs_raster import rasterize_gaussians, rasterize_gaussians_ref
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.gsplat_backend import drawn_by

torch.set_num_threads(1)

Scene = Callable[..., Gaussians]
Around = Callable[..., Cameras]
NAMES = ("means", "quats", "scales", "opacities", "features")


def picture(
    rasterize: Any, leaves: dict[str, Tensor], cameras: Cameras, **options: Any
) -> tuple[Tensor, Tensor]:
    """Project and rasterise leaves in their own dtype."""
    like = leaves["means"]
    means2d, conics, depths = project_gaussians(
        leaves["means"],
        leaves["quats"],
        leaves["scales"],
        cameras.w2c.to(like),
        cameras.K.to(like),
        width=cameras.width,
        height=cameras.height,
    )
    v = len(cameras)
    image: tuple[Tensor, Tensor] = rasterize(
        means2d,
        conics,
        depths,
        leaves["opacities"].expand(v, -1),
        leaves["features"].expand(v, -1, -1),
        width=cameras.width,
        height=cameras.height,
        **options,
    )
    return image


def leaves_of(gaussians: Gaussians, channels: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return parameters that ask for gradients."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(len(gaussians), channels, generator=generator)
    values = {**vars(gaussians), "features": features}
    return {name: values[name].clone().to(dtype).requires_grad_() for name in NAMES}


def loss_of(image: Tensor, alpha: Tensor) -> Tensor:
    """Weigh every pixel differently."""
    generator = torch.Generator().manual_seed(9)
    weights = torch.randn(image.shape, generator=generator).to(image)
    return (image * weights).sum() + (alpha * weights[..., 0].cos()).sum()


@pytest.mark.parametrize("channels", [3, 7])
@pytest.mark.parametrize("opacity", [(0.05, 0.9), (0.95, 1.0)], ids=["faint", "saturated"])
def test_equals_the_dense_definition_in_float64(
    scene: Scene, around: Around, opacity: tuple[float, float], channels: int
) -> None:
    gaussians, cameras = scene(300, opacity=opacity), around(2)
    background = torch.linspace(0, 1, channels, dtype=torch.float64)
    results = []
    for rasterize, dtype in (
        (rasterize_gaussians_ref, torch.float64),
        (rasterize_gaussians, torch.float32),
    ):
        leaves = leaves_of(gaussians, channels, dtype)
        image, alpha = picture(rasterize, leaves, cameras, background=background.to(dtype))
        torch.autograd.backward(loss_of(image, alpha))
        results.append((image, alpha, {name: leaves[name].grad for name in NAMES}))
    (image, alpha, gradients), (fast_image, fast_alpha, fast_gradients) = results
    torch.testing.assert_close(fast_image.double(), image, rtol=0, atol=1e-5)
    torch.testing.assert_close(fast_alpha.double(), alpha, rtol=0, atol=1e-5)
    for name in NAMES:
        exact, fast = gradients[name], fast_gradients[name]
        assert exact is not None and fast is not None
        off = (fast.double() - exact).norm() / exact.norm()
        assert off < 1e-4, f"{name}: {off:.1e}"


def test_one_gaussian_is_its_closed_form() -> None:
    cameras = Cameras(torch.eye(4)[None], Cameras.intrinsics(60, 31, 21)[None], 31, 21)
    means = torch.tensor([[0.0, 0.0, 2.0]])
    quats, scales = torch.tensor([[1.0, 0, 0, 0]]), torch.full((1, 3), 0.2)
    leaves = dict(means=means, quats=quats, scales=scales, opacities=torch.tensor([0.8]))
    _, alpha = picture(rasterize_gaussians, {**leaves, "features": torch.ones(1, 1)}, cameras)
    variance = (cameras.K[0, 0, 0] * 0.2 / 2) ** 2 + 0.3
    dx = torch.arange(31) + 0.5 - 15.5
    dy = torch.arange(21)[:, None] + 0.5 - 10.5
    expected = 0.8 * torch.exp(-(dx**2 + dy**2) / (2 * variance))
    expected = torch.where(expected > 1 / 255, expected, 0.0)
    torch.testing.assert_close(alpha[0], expected, rtol=0, atol=1e-6)


def test_the_order_of_splats_does_not_matter(scene: Scene, around: Around) -> None:
    gaussians, cameras = scene(200), around(1)
    shuffled = gaussians[torch.randperm(200)]
    torch.testing.assert_close(
        gaussians.render(cameras).rgb, shuffled.render(cameras).rgb, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("width", "height"), [(1, 1), (63, 100), (8, 8)])
def test_sizes_that_tiles_do_not_divide(
    scene: Scene, around: Around, width: int, height: int
) -> None:
    leaves, cameras = leaves_of(scene(50), 2, torch.float32), around(1, width=width, height=height)
    ours = picture(rasterize_gaussians, leaves, cameras)
    exact = picture(rasterize_gaussians_ref, leaves, cameras)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-5)


def test_tile_and_chunk_sizes_do_not_change_the_picture(
    scene: Scene, around: Around, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaves, cameras = leaves_of(scene(300), 3, torch.float32), around(2)
    usual = picture(rasterize_gaussians, leaves, cameras)
    for name, value in (("TILE", 16), ("CHUNK", 5), ("BLOCK", 3)):
        monkeypatch.setattr(gs_raster, name, value)
    torch.testing.assert_close(
        picture(rasterize_gaussians, leaves, cameras), usual, rtol=0, atol=1e-5
    )


def test_many_views_equal_single_views(scene: Scene, around: Around) -> None:
    gaussians, cameras = scene(200, degree=2), around(5)
    together = gaussians.render(cameras, outputs=("depth", "normal"))
    for view in range(5):
        alone = gaussians.render(cameras[view], outputs=("depth", "normal"))
        for name in ("rgb", "alpha", "depth", "normal"):
            torch.testing.assert_close(
                getattr(together, name)[view], getattr(alone, name)[0], rtol=0, atol=1e-5
            )


@pytest.mark.parametrize("case", ["none", "behind", "transparent", "beside", "not finite"])
def test_what_cannot_be_seen_leaves_the_background(scene: Scene, around: Around, case: str) -> None:
    gaussians, cameras = scene(0 if case == "none" else 20), around(1)
    change = {
        "none": lambda g: g,
        "behind": lambda g: g.each(lambda x: x * 0.1 if x is g.scales else x),
        "transparent": lambda g: g.each(lambda x: x * 0 if x is g.opacities else x),
        "beside": lambda g: g.each(lambda x: x + 500 if x is g.means else x),
        "not finite": lambda g: g.each(lambda x: x * math.nan if x is g.means else x),
    }[case](gaussians)
    if case == "behind":
        back = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
        shift = torch.eye(4)
        shift[2, 3] = -5
        cameras = Cameras(shift @ back @ cameras.w2c, cameras.K, cameras.width, cameras.height)
    rendering = change.render(cameras, background=(0.2, 0.4, 0.6))
    assert bool((rendering.alpha == 0).all())
    expected = torch.tensor([0.2, 0.4, 0.6]).expand_as(rendering.rgb)
    torch.testing.assert_close(rendering.rgb, expected)


def test_a_clamped_alpha_has_no_gradient_and_a_pixel_stops_when_opaque() -> None:
    one = torch.ones(1, 1)
    opacity = torch.ones(1, 3, requires_grad=True)
    means2d = torch.full((1, 3, 2), 0.5)
    conics = torch.tensor([1.0, 0, 1.0]).expand(1, 3, 3)
    features = torch.tensor([[[1.0], [10.0], [100.0]]])
    image, alpha = rasterize_gaussians(
        means2d, conics, torch.tensor([[1.0, 2.0, 3.0]]), opacity, features, width=1, height=1
    )
    # T after the second would be 1e-6, below 1e-4: the first is the last that counts.
    torch.testing.assert_close(image[0, :, :, 0], 0.999 * one)
    torch.testing.assert_close(alpha[0], 0.999 * one)
    torch.autograd.backward(image.sum())
    assert opacity.grad is not None and bool((opacity.grad == 0).all())


def test_gradcheck_in_float64(scene: Scene, around: Around) -> None:
    cameras = around(1, width=6, height=5)
    leaves = leaves_of(scene(6, opacity=(0.4, 0.8)), 2, torch.float64)

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        return picture(rasterize_gaussians, dict(zip(NAMES, values, strict=True)), cameras)

    assert torch.autograd.gradcheck(function, [leaves[name] for name in NAMES], atol=1e-4)


def test_depth_and_normal_of_a_plane(around: Around) -> None:
    x, y = torch.meshgrid(torch.linspace(-2, 2, 40), torch.linspace(-2, 2, 40), indexing="ij")
    means = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
    plane = Gaussians.from_colours(
        means,
        torch.tensor([1.0, 0, 0, 0]).expand(len(means), 4),
        torch.tensor([0.1, 0.1, 0.001]).expand(len(means), 3),
        torch.full((len(means),), 0.9),
        torch.full((len(means), 3), 0.5),
    )
    cameras = Cameras.look_at(torch.tensor([[0.0, 0.0, 3.0]]), width=32, height=32)
    rendering = plane.render(cameras, outputs=("depth", "normal"))
    assert rendering.depth is not None and rendering.normal is not None
    torch.testing.assert_close(rendering.depth, torch.full((1, 32, 32), 3.0), rtol=0, atol=1e-3)
    expected = torch.tensor([0.0, 0.0, 1.0]).expand(1, 32, 32, 3)
    torch.testing.assert_close(rendering.normal, expected, rtol=0, atol=1e-5)


def test_features_are_composited_like_colours(scene: Scene, around: Around) -> None:
    gaussians, cameras = scene(100), around(2)
    d = torch.nn.functional.normalize(gaussians.means - cameras[0].centres, dim=-1)
    gaussians.features["copy"] = harmonics_to_colours(gaussians.sh, d[None])[0]
    rendering = gaussians.render(cameras, background=(0.0, 0.0, 0.0), outputs=("features",))
    torch.testing.assert_close(rendering.features["copy"], rendering.rgb)


def test_tile_lists_hold_every_pair_that_counts(scene: Scene, around: Around) -> None:
    gaussians, cameras = scene(150), around(2)
    width, height, tile = cameras.width, cameras.height, 8
    means2d, conics, depths = project_gaussians(
        gaussians.means, gaussians.quats, gaussians.scales, cameras.w2c, cameras.K,
        width=width, height=height,
    )  # fmt: skip
    opacities = gaussians.opacities.expand(2, -1)
    lists = tile_lists(means2d, conics, depths, opacities, width=width, height=height, tile=tile)
    found = set()
    for index in range(len(lists.counts)):
        ids = lists.ids[lists.offsets[index] : lists.offsets[index + 1]]
        view, inside = divmod(index, lists.rows * lists.columns)
        assert bool((ids // 150 == view).all())
        in_order = depths.flatten()[ids]
        assert bool((in_order[1:] >= in_order[:-1]).all())
        found |= {(int(splat), *divmod(inside, lists.columns)) for splat in ids}
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    dx, dy = x - means2d[..., 0, None, None], y - means2d[..., 1, None, None]
    A, B, C = (part[..., None, None] for part in conics.unbind(-1))
    alpha = opacities[..., None, None] * torch.exp(-(A * dx * dx + C * dy * dy) / 2 - B * dx * dy)
    needed = set()
    for view, splat, row, column in (alpha > 1 / 255).nonzero().tolist():
        needed.add((view * 150 + splat, row // tile, column // tile))
    assert needed <= found
    assert len(found) < 1.1 * len(needed) + 20


def test_harmonics_are_orthonormal_on_the_sphere() -> None:
    count = 20_000
    z = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 - 1
    angle = torch.arange(count, dtype=torch.float64) * math.pi * (3 - math.sqrt(5))
    ring = (1 - z * z).sqrt()
    basis = harmonics_basis(torch.stack([ring * angle.cos(), ring * angle.sin(), z], -1), 16)
    gram = 4 * math.pi / count * basis.T @ basis
    torch.testing.assert_close(gram, torch.eye(16, dtype=torch.float64), rtol=0, atol=1e-3)


def test_projection_and_harmonics_equal_gsplat(scene: Scene, around: Around) -> None:
    gsplat = pytest.importorskip("gsplat.cuda._torch_impl")
    gaussians, cameras = scene(100, degree=3), around(3, width=64, height=48)
    covariances, _ = gsplat._quat_scale_to_covar_preci(
        torch.nn.functional.normalize(gaussians.quats, dim=-1), gaussians.scales, True, False
    )
    radii, means2d, depths, conics, _ = gsplat._fully_fused_projection(
        gaussians.means, covariances, cameras.w2c, cameras.K, 64, 48, eps2d=0.3, near_plane=0.01
    )
    ours = project_gaussians(
        gaussians.means, gaussians.quats, gaussians.scales, cameras.w2c, cameras.K,
        width=64, height=48,
    )  # fmt: skip
    seen = (radii > 0).all(-1) if radii.ndim == 3 else radii > 0
    assert int(seen.sum()) > 100
    for mine, theirs in zip(ours, (means2d, conics, depths), strict=True):
        torch.testing.assert_close(mine[seen], theirs[seen], rtol=1e-4, atol=1e-4)
    d = torch.nn.functional.normalize(gaussians.means - cameras.centres[:, None], dim=-1)
    theirs = gsplat._spherical_harmonics(3, d, gaussians.sh.expand(3, -1, -1, -1))
    torch.testing.assert_close(
        harmonics_to_colours(gaussians.sh, d), (theirs + 0.5).clamp_min(0), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("with_depth", [False, True])
def test_gsplat_as_a_backend_is_given_what_it_means(
    scene: Scene, around: Around, with_depth: bool
) -> None:
    theirs = pytest.importorskip("gsplat.cuda._torch_impl")
    gsplat = pytest.importorskip("gsplat")
    gaussians, cameras = scene(100, degree=1), around(2, width=64, height=48)

    def rasterization(**given: Any) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
        """Draw with gsplat's own projection, in plain torch."""
        assert set(given) <= set(inspect.signature(gsplat.rasterization).parameters)
        covariances, _ = theirs._quat_scale_to_covar_preci(
            torch.nn.functional.normalize(given["quats"], dim=-1), given["scales"], True, False
        )
        radii, means2d, depths, conics, _ = theirs._fully_fused_projection(
            given["means"], covariances, given["viewmats"], given["Ks"], given["width"],
            given["height"], eps2d=0.3, near_plane=given["near_plane"],
        )  # fmt: skip
        seen = (radii > 0).all(-1) if radii.ndim == 3 else radii > 0
        features = torch.cat([given["colors"], depths[..., None]], -1)
        image, alpha = rasterize_gaussians_ref(
            means2d, conics, depths, given["opacities"] * seen, features,
            width=given["width"], height=given["height"],
        )  # fmt: skip
        mean_depth = image[..., -1:] / alpha[..., None].clamp_min(1e-6)
        mode = {"RGB": image[..., :-1], "RGB+ED": torch.cat([image[..., :-1], mean_depth], -1)}
        return mode[given.get("render_mode", "RGB")], alpha[..., None], {}

    d = torch.nn.functional.normalize(gaussians.means - cameras.centres[:, None], dim=-1)
    channels = {"rgb": harmonics_to_colours(gaussians.sh, d)}
    image, alpha, depth = drawn_by(rasterization, gaussians, cameras, channels, with_depth)
    ours = gaussians.render(cameras, background=(0.0, 0.0, 0.0), outputs=("depth",))
    torch.testing.assert_close(image, ours.rgb, rtol=0, atol=1e-4)
    torch.testing.assert_close(alpha, ours.alpha, rtol=0, atol=1e-4)
    assert (depth is not None) == with_depth
    if depth is not None:
        assert ours.depth is not None
        torch.testing.assert_close(depth * alpha, ours.depth * alpha, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="draws 3D Gaussians: give solid"):
        drawn_by(rasterization, gaussians.flattened(), cameras, channels, with_depth)


def test_backends_that_cannot_draw_say_why(scene: Scene, around: Around) -> None:
    with pytest.raises(ValueError, match="runs on CUDA alone and the scene is on cpu: move scene"):
        scene(5).render(around(1), backend="gsplat")
    with pytest.raises(ValueError, match="unknown backend 'cuda': None is ours"):
        scene(5).render(around(1), backend="cuda")


def test_errors_name_what_is_wrong(scene: Scene, around: Around) -> None:
    with pytest.raises(ValueError, match="unknown outputs .'dept'.: choose from depth, normal"):
        scene(5).render(around(1), outputs=("dept",))
    with pytest.raises(ValueError, match="2 harmonics were asked for: 1, 4, 9 or 16"):
        harmonics_basis(torch.ones(1, 3), 2)
    with pytest.raises(ValueError, match="a picture of 0 x 5: it needs a pixel"):
        empty = torch.zeros(1, 0)
        rasterize_gaussians(
            torch.zeros(1, 0, 2), torch.zeros(1, 0, 3), empty, empty, torch.zeros(1, 0, 1),
            width=0, height=5,
        )  # fmt: skip


def test_autocast_around_it_changes_nothing(scene: Scene, around: Around) -> None:
    gaussians, cameras = scene(60), around(1)
    plain = gaussians.render(cameras)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gaussians.render(cameras)
    torch.testing.assert_close(inside.rgb, plain.rgb, rtol=0, atol=5e-3)
    torch.testing.assert_close(inside.alpha, plain.alpha, rtol=0, atol=0)
