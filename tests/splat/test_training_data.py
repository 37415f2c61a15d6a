"""Procedural objects, cameras, captures and the trainer: closed forms, shards, resume, errors."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from skipstep.pipelines.splat import examples as examples_module
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.capture import CaptureError, read_capture
from skipstep.pipelines.splat.cost_volume import pixel_rays, sweep
from skipstep.pipelines.splat.examples import Examples, draw_examples, load_examples
from skipstep.pipelines.splat.lessons import LESSONS, draw_batch
from skipstep.pipelines.splat.objects import MISSED, Primitive, input_cameras, meet, picture, trace
from skipstep.pipelines.splat.train import Trainer

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Draw two objects."""
    return draw_examples(5, 2)


@pytest.mark.parametrize("kind", ["ellipsoid", "box", "cylinder", "cone"])
def test_a_ray_meets_the_surface_where_it_satisfies_its_equation(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    o = 3 * torch.nn.functional.normalize(torch.randn(400, 3, generator=generator), dim=-1)
    d = 0.5 * torch.randn(400, 3, generator=generator) - o
    z, normal = meet(kind, o, d)
    hit = z < MISSED
    assert 100 < int(hit.sum()) < 400
    q = o[hit] + z[hit, None] * d[hit]
    x, y, w = q.unbind(-1)
    ring = (x * x + w * w).sqrt()
    surface = {
        "ellipsoid": (q.norm(dim=-1) - 1).abs(),
        "box": (q.abs().amax(-1) - 1).abs(),
        "cylinder": torch.maximum(ring, y.abs()) - 1,
        "cone": torch.minimum((ring - (1 - y) / 2).abs(), (y + 1).abs()),
    }[kind]
    assert surface.abs().max() < 1e-4
    # The first meeting is on the side that faces the camera.
    assert bool(((normal[hit] * d[hit]).sum(-1) < 1e-4).all())


def test_depth_is_z_depth_and_alpha_is_coverage() -> None:
    ball = Primitive(
        "ellipsoid", torch.full((3,), 0.5), torch.zeros(3), torch.eye(3), "plain",
        torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), 1.0, torch.tensor([1.0, 0, 0]),
    )  # fmt: skip
    camera = Cameras.look_at(torch.tensor([[0.0, 0, 2.0]]), width=65)
    pixels, depth = picture([ball], camera)
    assert depth[0, 32, 32].item() == pytest.approx(1.5, abs=1e-2)
    # A sphere of radius r at distance D covers a disc of radius f r / sqrt(D^2 - r^2).
    radius = camera.K[0, 0, 0].item() * 0.5 / math.sqrt(4 - 0.25)
    covered = pixels[0, 3].float().sum().item() / 255
    assert covered == pytest.approx(math.pi * radius**2, rel=0.02)
    colour, z = trace([ball], torch.tensor([[0.0, 5, 5]]), torch.tensor([[0.0, 0, -1]]))
    assert z.item() == MISSED and bool((colour == 1).all())


def test_the_sweep_finds_the_plane_of_a_surface(examples: Examples) -> None:
    pictures = examples.pictures[:1, :4].float() / 255
    w2c, K = examples.w2c[:1, :4], examples.K.expand(1, 4, 3, 3)
    z = torch.linspace(1.3, 3.1, 32)
    occ, _ = sweep(pictures, w2c, K, z)
    true = examples.depths[0, :4].float()
    solid = pictures[0, :, 3] == 1
    nearest = (true[..., None] - z).abs().argmin(-1)
    inside = occ[0].gather(1, nearest[:, None])[:, 0][solid]
    # A point of the object lies in every silhouette, up to soft edges; others on its ray do not.
    assert inside.mean() > 0.75
    assert inside.mean() > 1.5 * occ[0].mean(1)[solid].mean()
    o, d = pixel_rays(w2c, K, 64, 64)
    points = o[0, 0] + d[0, 0][solid[0]] * true[0][solid[0], None]
    assert points.norm(dim=-1).max() < 1.3


def test_shards_are_drawn_once_and_equal_fresh_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: Examples
) -> None:
    monkeypatch.setattr(examples_module, "SHARD", 2)
    first = load_examples(tmp_path, 2, first=5)
    monkeypatch.setattr(examples_module, "draw_examples", None)
    again = load_examples(tmp_path, 2, first=5)
    for name in ("pictures", "depths", "w2c"):
        assert torch.equal(getattr(first, name), getattr(examples, name))
        assert torch.equal(getattr(again, name), getattr(examples, name))


@pytest.mark.parametrize("name", sorted(LESSONS))
def test_training_learns_and_resumes_where_it_stopped(
    name: str, tmp_path: Path, examples: Examples
) -> None:
    lesson = replace(LESSONS[name], batch=1)
    generator = torch.Generator().manual_seed(0)
    batch = draw_batch(lesson, examples, generator)
    whole, halted, resumed = Trainer(lesson), Trainer(lesson), Trainer(lesson)
    losses = [whole.step(batch, 1.0) for _ in range(2)]
    assert losses[1] < losses[0]
    halted.step(batch, 1.0)
    halted.save(tmp_path / "checkpoint.pt", 12.0)
    assert resumed.restore(tmp_path / "checkpoint.pt") == 12.0
    resumed.step(batch, 1.0)
    for one, two in zip(whole.bare.parameters(), resumed.bare.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_a_run_starts_from_the_weights_of_another_model(tmp_path: Path) -> None:
    lender, borrower = (Trainer(LESSONS[name]) for name in ("cost-volume", "single-view"))
    lent = {name: value + 1 for name, value in lender.bare.state_dict().items()}
    save_file(lent, tmp_path / "lent.safetensors")
    borrower.borrow(tmp_path / "lent.safetensors")
    mine = borrower.averaged().state_dict()
    torch.testing.assert_close(mine["unet.fine_in.conv1.weight"], lent["unet.fine_in.conv1.weight"])
    enter = "unet.enter.weight"
    torch.testing.assert_close(mine[enter][:, :4], lent[enter][:, :4])
    assert not torch.allclose(mine[enter][:, 4:], lent[enter][:, 4:6])


def test_opengl_poses_become_opencv() -> None:
    cameras = Cameras.orbit(3)
    c2w = torch.linalg.inv(cameras.w2c) * torch.tensor([1.0, -1, -1, 1])
    again = Cameras.from_c2w(c2w, cameras.K, width=256, height=256, convention="opengl")
    torch.testing.assert_close(again.w2c, cameras.w2c, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="convention 'blender' is unknown: use 'opencv' or"):
        Cameras.from_c2w(c2w, cameras.K, width=1, height=1, convention="blender")


def test_an_orbit_stands_upright_and_looks_at_its_target() -> None:
    target = torch.tensor([1.0, 2.0, 3.0])
    cameras = Cameras.orbit(8, elevation=20, radius=4, target=target)
    at = cameras.w2c[:, :3, :3] @ target + cameras.w2c[:, :3, 3]
    torch.testing.assert_close(at, torch.tensor([0.0, 0, 4]).expand(8, 3), rtol=0, atol=1e-5)
    # Up in the picture is -y of the camera and points to -y of the world.
    assert bool((cameras.w2c[:, 1, 1] > 0.9).all())
    assert bool((cameras.centres[:, 1] < target[1]).all())
    swing = cameras.swing(0, distance=4.0, amount=0.1, views=12)
    at = swing.w2c[:, :3, :3] @ target + swing.w2c[:, :3, 3]
    assert at[:, :2].abs().max() < 1e-4


def write_capture(folder: Path, **change: object) -> None:
    """Write a capture of two pictures."""
    frames = []
    cameras = input_cameras(1, views=2)
    for view in range(2):
        Image.new("RGB", (32, 16), (200, 100, 50)).save(folder / f"{view}.png")
        numbers = {"width": 64, "height": 32, "fx": 70.0, "fy": 70.0, "cx": 32.0, "cy": 16.0}
        frames.append(
            {"file": f"{view}.png", "w2c": cameras.w2c[view].tolist(), **numbers, **change}
        )
    (folder / "cameras.json").write_text(json.dumps({"frames": frames}))


def test_intrinsics_follow_the_size_that_is_read(tmp_path: Path) -> None:
    write_capture(tmp_path)
    capture = read_capture(tmp_path)
    assert (capture.cameras.width, capture.cameras.height) == (32, 16)
    torch.testing.assert_close(capture.cameras.K[0, 0, 0], torch.tensor(35.0))
    small = read_capture(tmp_path, width=16)
    torch.testing.assert_close(small.cameras.K[0, 0, 0], torch.tensor(17.5))
    assert small.pictures.shape == (2, 3, 8, 16)


def test_transforms_json_is_read(tmp_path: Path) -> None:
    cameras = replace(Cameras.orbit(2, width=32), height=32)
    c2w = torch.linalg.inv(cameras.w2c) * torch.tensor([1.0, -1, -1, 1])
    frames = []
    for view in range(2):
        Image.new("RGBA", (32, 32), (200, 100, 50, 128)).save(tmp_path / f"{view}.png")
        frames.append({"file_path": f"./{view}", "transform_matrix": c2w[view].tolist()})
    stored = {"w": 32, "h": 32, "camera_angle_x": math.radians(49.1), "frames": frames}
    (tmp_path / "transforms.json").write_text(json.dumps(stored))
    capture = read_capture(tmp_path)
    assert capture.pictures.shape == (2, 4, 32, 32)
    torch.testing.assert_close(capture.cameras.w2c, cameras.w2c, rtol=0, atol=1e-5)
    torch.testing.assert_close(capture.cameras.K, cameras.K, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"file": "../../etc/passwd.png"}, "outside of the folder"),
        ({"file": "missing.png"}, "missing.png cannot be read as a picture"),
        ({"fx": "wide"}, "cameras.json is not understood"),
        ({"w2c": [1, 2]}, "cameras.json is not understood"),
    ],
)
def test_a_bad_capture_is_explained(tmp_path: Path, change: dict[str, object], words: str) -> None:
    write_capture(tmp_path, **change)
    with pytest.raises(CaptureError, match=words):
        read_capture(tmp_path)


def test_a_folder_without_cameras_is_explained(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="has no cameras.json or transforms.json"):
        read_capture(tmp_path)
