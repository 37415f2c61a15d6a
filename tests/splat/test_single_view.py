"""One picture to Gaussians, and text to 3D on top of it."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.objects import input_cameras, new_object, novel_cameras, picture
from skipstep.pipelines.splat.pipeline import GaussianReconstructionPipeline, load_reconstructor
from skipstep.pipelines.splat.text_to_3d import cut_out, gaussians_from_text
from skipstep.plugins.errors import Incompatible

torch.set_num_threads(1)

OBJECTS = [10**7 + i for i in range(6)]


@cache
def pipeline() -> GaussianReconstructionPipeline:
    """Load the shipped single-view model once."""
    return GaussianReconstructionPipeline(load_reconstructor("single-view"))


@cache
def shown(seed: int) -> tuple[Tensor, Cameras, Tensor, Cameras]:
    """Return one picture with straight alpha, its camera, and four novel views."""
    inputs, novel = input_cameras(seed, views=1), novel_cameras(seed, views=4)
    parts = new_object(seed)
    one, others = (picture(parts, each)[0].float() / 255 for each in (inputs, novel))
    alpha = one[:, 3:]
    rgb = (one[:, :3] - (1 - alpha)) / alpha.clamp_min(1e-3)
    return torch.cat([rgb.clamp(0, 1), alpha], 1), inputs, others[:, :3], novel


def psnr(images: Tensor, wanted: Tensor) -> float:
    """Return the mean PSNR of pictures [v, 3, height, width]."""
    return float(-10 * torch.log10((images - wanted).square().mean((1, 2, 3))).mean())


def seen(gaussians: Gaussians, cameras: Cameras) -> Tensor:
    """Render as [v, 3, height, width]."""
    return gaussians.render(cameras).rgb.clamp(0, 1).permute(0, 3, 1, 2)


def test_novel_views_are_clearly_better_than_the_picture_itself() -> None:
    ours, copied = [], []
    for seed in OBJECTS:
        one, camera, wanted, novel = shown(seed)
        ours.append(psnr(seen(pipeline()(one, camera).gaussians, novel), wanted))
        white = one[:, :3] * one[:, 3:] + 1 - one[:, 3:]
        copied.append(psnr(white.expand(4, -1, -1, -1), wanted))
    assert sum(ours) / len(OBJECTS) > sum(copied) / len(OBJECTS) + 1.5


def test_the_result_stands_in_the_world_of_the_camera() -> None:
    one, camera, wanted, novel = shown(OBJECTS[0])
    usual = psnr(seen(pipeline()(one, camera).gaussians, novel), wanted)
    turn = torch.eye(4)
    turn[:3, :3] = torch.tensor([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])

    def moved(views: Cameras) -> Cameras:
        return Cameras(views.w2c @ turn, views.K, views.width, views.height)

    elsewhere = pipeline()(one, moved(camera)).gaussians
    assert psnr(seen(elsewhere, moved(novel)), wanted) == pytest.approx(usual, abs=0.02)


def test_a_folder_with_one_picture_and_no_camera_is_enough(tmp_path: Path) -> None:
    one, _, _, _ = shown(OBJECTS[1])
    pixels = (one[0] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels, "RGBA").save(tmp_path / "one.png")
    result = pipeline()(tmp_path)
    assert len(result.gaussians) > 100
    white = one[:, :3] * one[:, 3:] + 1 - one[:, 3:]
    assert psnr(seen(result.gaussians, result.cameras), white) > 15


def test_the_number_of_pictures_decides_the_model() -> None:
    one, _, _, _ = shown(OBJECTS[0])
    with pytest.raises(ValueError, match="this model takes 1: use load_reconstructor"):
        pipeline()(one.repeat(2, 1, 1, 1))
    several = GaussianReconstructionPipeline(load_reconstructor())
    with pytest.raises(ValueError, match='load_reconstructor\\("single-view"\\) takes 1'):
        several(one)
    with pytest.raises(ValueError, match="no reconstructor 'triplane': choose one of cost-volume"):
        load_reconstructor("triplane")
    with pytest.raises(Incompatible, match="takes a single picture: it has no views to fuse"):
        pipeline().enable_plugin("zpressor")


def test_what_stands_before_the_borders_colour_is_cut_out() -> None:
    drawn = torch.ones(1, 3, 40, 60) * torch.tensor([0.9, 0.8, 0.7])[:, None, None]
    drawn[:, :, 10:24, 20:34] = torch.tensor([0.2, 0.3, 0.9])[:, None, None]
    cut = cut_out(drawn)
    assert cut.shape == (1, 4, 20, 20)
    assert int((cut[0, 3] > 0.5).sum()) == 14 * 14
    assert bool((cut[0, 3, 3:17, 3:17] == 1).all())
    with pytest.raises(ValueError, match="the picture shows one colour alone"):
        cut_out(torch.ones(1, 3, 8, 8))


def test_text_becomes_gaussians_through_any_pipeline_that_draws() -> None:
    asked: dict[str, Any] = {}

    def draws(prompt: str, **options: Any) -> Any:
        asked.update(options, prompt=prompt)
        ball = picture(new_object(OBJECTS[0]), input_cameras(OBJECTS[0], views=1))[0][0, :3]
        return type("Drawn", (), {"images": [Image.fromarray(ball.permute(1, 2, 0).numpy())]})

    gaussians, drawn = gaussians_from_text(
        "a ball", text_to_image=draws, reconstructor=pipeline().reconstructor, seed=3, guidance=2.0
    )
    assert asked["prompt"] == "a ball, on a white background" and asked["guidance"] == 2.0
    assert asked["generator"].initial_seed() == 3
    assert len(gaussians) > 100 and drawn.size == (64, 64)


@pytest.mark.slow
def test_the_shipped_models_turn_words_into_a_scene() -> None:
    gaussians, drawn = gaussians_from_text("a pizza, flat style", seed=1)
    assert drawn.size == (128, 128)
    assert not gaussians.problems() and len(gaussians) > 200
