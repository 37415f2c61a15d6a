"""Photos to Gaussians: quality on held-out objects, cameras of any world, refinement, command."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from skipstep.pipelines.cli.main import app
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.objects import input_cameras, new_object, novel_cameras, picture
from skipstep.pipelines.splat.pipeline import (
    GaussianReconstructionPipeline,
    canonical_cameras,
    load_reconstructor,
)
from skipstep.plugins.errors import PluginError

torch.set_num_threads(1)

# A seed that no training set reaches.
OBJECT = 10**7 + 3


@cache
def pipeline() -> GaussianReconstructionPipeline:
    """Load the shipped reconstructor once."""
    return GaussianReconstructionPipeline(load_reconstructor())


@cache
def held_out(views: int = 4) -> tuple[Tensor, Cameras, Tensor, Cameras]:
    """Return inputs with alpha and novel views of one object."""
    inputs, novel = input_cameras(OBJECT, views=views), novel_cameras(OBJECT, views=4)
    parts = new_object(OBJECT)
    pictures = [picture(parts, cameras)[0].float() / 255 for cameras in (inputs, novel)]
    return straight(pictures[0]), inputs, pictures[1][:, :3], novel


def straight(over_white: Tensor) -> Tensor:
    """Take the white out of pictures: RGB that alpha is yet to be applied to."""
    alpha = over_white[:, 3:]
    rgb = (over_white[:, :3] - (1 - alpha)) / alpha.clamp_min(1e-3)
    return torch.cat([rgb.clamp(0, 1), alpha], 1)


def psnr(gaussians: Gaussians, wanted: Tensor, cameras: Cameras) -> float:
    """Return the mean PSNR of rendered views."""
    rgb = gaussians.render(cameras).rgb.clamp(0, 1).permute(0, 3, 1, 2)
    return float(-10 * torch.log10((rgb - wanted).square().mean((1, 2, 3))).mean())


def nearest_copied(pictures: Tensor, cameras: Cameras, wanted: Tensor, novel: Cameras) -> float:
    """Return the mean PSNR of copying the nearest input view."""
    white = pictures[:, :3] * pictures[:, 3:] + 1 - pictures[:, 3:]
    nearest = torch.cdist(novel.centres, cameras.centres).argmin(1)
    off = (white[nearest] - wanted).square().mean((1, 2, 3))
    return float(-10 * torch.log10(off).mean())


def test_novel_views_are_far_better_than_the_nearest_picture() -> None:
    pictures, cameras, wanted, novel = held_out()
    gaussians = pipeline()(pictures, cameras).gaussians
    assert psnr(gaussians, wanted, novel) > nearest_copied(pictures, cameras, wanted, novel) + 3


def test_refinement_brings_the_inputs_closer_and_novel_views_too() -> None:
    pictures, cameras, wanted, novel = held_out()
    white = pictures[:, :3] * pictures[:, 3:] + 1 - pictures[:, 3:]
    plain = pipeline()(pictures, cameras).gaussians
    refined = pipeline()(pictures, cameras, refine_steps=40).gaussians
    assert psnr(refined, white, cameras) > psnr(plain, white, cameras) + 1.5
    assert psnr(refined, wanted, novel) > psnr(plain, wanted, novel) + 0.3


def test_the_unit_and_place_of_the_world_do_not_matter() -> None:
    pictures, cameras, wanted, novel = held_out()
    usual = psnr(pipeline()(pictures, cameras).gaussians, wanted, novel)
    shift = torch.tensor([3.0, -20.0, 7.0])

    def moved(views: Cameras) -> Cameras:
        w2c = views.w2c.clone()
        w2c[:, :3, 3] = 10 * w2c[:, :3, 3] - w2c[:, :3, :3] @ shift
        return Cameras(w2c, views.K, views.width, views.height)

    elsewhere = pipeline()(pictures, moved(cameras)).gaussians
    assert psnr(elsewhere, wanted, moved(novel)) == pytest.approx(usual, abs=0.05)


def test_pictures_of_another_size_give_the_same_object() -> None:
    pictures, cameras, wanted, novel = held_out()
    usual = psnr(pipeline()(pictures, cameras).gaussians, wanted, novel)
    large = torch.nn.functional.interpolate(pictures, scale_factor=2.0, mode="nearest")
    gaussians = pipeline()(large, cameras.resized(128, 128)).gaussians
    assert psnr(gaussians, wanted, novel) == pytest.approx(usual, abs=0.3)


@pytest.mark.parametrize("views", [2, 3, 6])
def test_other_numbers_of_views_work(views: int) -> None:
    pictures, cameras, wanted, novel = held_out(views)
    gaussians = pipeline()(pictures, cameras).gaussians
    assert psnr(gaussians, wanted, novel) > nearest_copied(pictures, cameras, wanted, novel)


def test_opaque_pictures_on_white_need_no_alpha_and_no_cameras(tmp_path: Path) -> None:
    cameras = canonical_cameras(4)
    pictures, _ = picture(new_object(OBJECT), cameras)
    for view in range(4):
        pixels = pictures[view, :3].permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(tmp_path / f"{view}.png")
    gaussians = pipeline()(tmp_path).gaussians
    novel = novel_cameras(OBJECT, views=4)
    wanted = picture(new_object(OBJECT), novel)[0][:, :3].float() / 255
    assert psnr(gaussians, wanted, novel) > 17


def test_a_saved_pipeline_gives_the_same_scene(tmp_path: Path) -> None:
    pictures, cameras, _, _ = held_out()
    pipeline().save_pretrained(tmp_path)
    again = GaussianReconstructionPipeline.from_pretrained(tmp_path)
    one, two = pipeline()(pictures, cameras).gaussians, again(pictures, cameras).gaussians
    torch.testing.assert_close(one.means, two.means, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": torch.zeros(1, 4, 64, 64)}, "1 pictures were given: between 2 and 16"),
        ({"cameras": canonical_cameras(3)}, "4 pictures and 3 cameras: give one for each"),
        ({"resolution": 60}, "resolution=60 must be a positive multiple of 8"),
        ({"background": "pink"}, "background='pink': use white, black or"),
        ({"images": torch.rand(4, 3, 64, 64)}, "no plain background to cut the object from"),
        ({"images": "nothing"}, "give PIL images, a folder or a tensor|No such file"),
        ({"images": []}, "no pictures were given"),
    ],
)
def test_errors_say_what_to_do(change: dict[str, object], words: str) -> None:
    pictures, cameras, _, _ = held_out()
    arguments: dict[str, Any] = {"images": pictures, "cameras": cameras, **change}
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        pipeline()(**arguments)


def test_cameras_that_look_away_from_each_other_are_refused() -> None:
    pictures, cameras, _, _ = held_out()
    away = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0])) @ cameras.w2c
    with pytest.raises(ValueError, match="the cameras do not look at one object"):
        pipeline()(pictures, Cameras(away, cameras.K, 64, 64))


def test_the_command_writes_splats_a_page_and_a_video(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    folder.mkdir()
    pictures, _ = picture(new_object(OBJECT), canonical_cameras(4))
    for view in range(4):
        pixels = pictures[view].permute(1, 2, 0).numpy()
        Image.fromarray(pixels, "RGBA").save(folder / f"{view}.png")
    out = tmp_path / "out"
    done = CliRunner().invoke(
        app, ["reconstruct", str(folder), "-o", str(out), "--refine-steps", "3"]
    )
    assert done.exit_code == 0, done.output
    written = {path.name for path in out.iterdir()}
    assert {"toy.ply", "toy.spz", "toy.html"} <= written
    assert not Gaussians.load(out / "toy.ply").problems()


def test_the_command_refuses_a_place_without_cameras(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="has no cameras, and a place cannot be rebuilt"):
        CliRunner().invoke(app, ["reconstruct", str(tmp_path), "--scene"], catch_exceptions=False)


def test_a_scene_is_rebuilt_from_posed_photographs(
    tmp_path: Path, scene: Callable[..., Gaussians]
) -> None:
    from skipstep.pipelines.splat.capture import read_capture
    from skipstep.pipelines.splat.scene import reconstruct_scene

    wall = textured_wall()
    offsets = torch.tensor([[-0.3, 0, 0], [-0.1, 0.1, 0], [0.1, -0.1, 0], [0.3, 0, 0], [0, 0.2, 0]])
    cameras = Cameras.look_at(offsets, target=torch.tensor([0.0, 0, 3]), width=48, height=36)
    frames = []
    for view, image in enumerate(wall.render(cameras, background=(0.5, 0.5, 0.5)).pictures()):
        image.save(tmp_path / f"{view}.png")
        K = cameras.K[view]
        frames.append(
            {
                "file": f"{view}.png",
                "width": 48,
                "height": 36,
                **{"fx": K[0, 0].item(), "fy": K[1, 1].item()},
                **{"cx": K[0, 2].item(), "cy": K[1, 2].item()},
                "w2c": cameras.w2c[view].tolist(),
            }
        )
    (tmp_path / "cameras.json").write_text(json.dumps({"frames": frames}))
    capture = read_capture(tmp_path)
    gaussians = reconstruct_scene(capture[[0, 1, 2, 3]], seconds=2.5)
    left_out = capture[[4]]
    rgb = gaussians.render(left_out.cameras, background=(0.5, 0.5, 0.5)).rgb
    error = (rgb[0].permute(2, 0, 1) - left_out.pictures[0]).square().mean()
    assert float(-10 * torch.log10(error)) > 20


def textured_wall() -> Gaussians:
    """Return a wall of many colours at a depth of 3."""
    x, y = torch.meshgrid(torch.linspace(-2, 2, 60), torch.linspace(-2, 2, 60), indexing="ij")
    means = torch.stack([x, y, 3 + 0.2 * torch.sin(2 * x)], -1).reshape(-1, 3)
    colours = torch.rand(20, 20, 3, generator=torch.Generator().manual_seed(0))
    colours = colours.repeat_interleave(3, 0).repeat_interleave(3, 1).reshape(-1, 3)
    return Gaussians.from_colours(
        means,
        torch.tensor([1.0, 0, 0, 0]).repeat(3600, 1),
        torch.full((3600, 3), 0.04),
        torch.full((3600,), 0.95),
        colours,
    )
