"""Squeezed objects: what the reconstructor sees survives; hostile files do not."""

from functools import cache
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.file_checks import FormatError
from skipstep.pipelines.splat.objects import input_cameras, new_object, picture
from skipstep.pipelines.splat.pipeline import GaussianReconstructionPipeline, load_reconstructor
from skipstep.pipelines.splat.squeeze import (
    HEADER,
    VIEW,
    cosines,
    read_squeezed,
    seen_from,
    write_squeezed,
)

torch.set_num_threads(1)


@cache
def example() -> tuple[Tensor, Cameras]:
    """Return four pictures with straight alpha of a held-out object, and their cameras."""
    cameras = input_cameras(10**7)
    drawn = picture(new_object(10**7), cameras)[0].float() / 255
    alpha = drawn[:, 3:]
    straight = ((drawn[:, :3] - 1 + alpha) / alpha.clamp_min(1e-3)).clamp(0, 1)
    return torch.cat([straight, alpha], 1), cameras


def test_the_transform_keeps_lengths() -> None:
    torch.testing.assert_close(cosines() @ cosines().T, torch.eye(8), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("step", "least", "most"), [(0.01, 45, 14000), (0.15, 26, 4500)])
def test_a_small_step_keeps_the_pictures_and_a_large_one_saves_bytes(
    tmp_path: Path, step: float, least: float, most: int
) -> None:
    pictures, cameras = example()
    path = write_squeezed(tmp_path / "x", pictures, cameras, step=step)
    again, same = read_squeezed(path)
    assert path.stat().st_size < most
    torch.testing.assert_close(same.w2c, cameras.w2c)
    torch.testing.assert_close(same.K, cameras.K)

    def maps(values: Tensor) -> Tensor:
        over = torch.cat([values[:, :3] * values[:, 3:], values[:, 3:]], 1)
        return torch.nn.functional.avg_pool2d(over, 2)

    off = (maps(again) - maps(pictures)).square().mean()
    assert float(-10 * torch.log10(off)) > least


def test_the_object_comes_back_through_the_reconstructor(tmp_path: Path) -> None:
    pictures, cameras = example()
    pipe = GaussianReconstructionPipeline(load_reconstructor())
    scene = pipe(pictures, cameras).gaussians
    path = write_squeezed(tmp_path / "x", pictures, cameras)
    again = pipe(*read_squeezed(path)).gaussians
    around = input_cameras(5)
    off = (again.render(around).rgb - scene.render(around).rgb).square().mean()
    assert float(-10 * torch.log10(off)) > 30
    assert path.stat().st_size < scene.save(tmp_path / "x.spz").stat().st_size / 3
    seen, places = seen_from(scene)
    assert seen.shape == (4, 4, 64, 64) and len(places) == 4
    assert 0.05 < float(seen[:, 3].mean()) < 0.5


def test_what_is_no_object_is_refused(tmp_path: Path) -> None:
    pictures, cameras = example()
    with pytest.raises(ValueError, match="4 pictures of 3 channels and 4 cameras"):
        write_squeezed(tmp_path / "x", pictures[:, :3], cameras)
    with pytest.raises(ValueError, match="size=30"):
        write_squeezed(tmp_path / "x", pictures, cameras, size=30)


@hypothesis.settings(
    max_examples=20,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(
    cut=st.integers(0, 400), at=st.integers(0, HEADER.size + VIEW.size), byte=st.integers(0, 255)
)
def test_a_damaged_file_is_refused_or_read(tmp_path: Path, cut: int, at: int, byte: int) -> None:
    path = write_squeezed(tmp_path / "x", *example(), step=0.2)
    data = bytearray(path.read_bytes())
    data[at] = byte
    path.write_bytes(data[: len(data) - cut])
    try:
        pictures, _ = read_squeezed(path)
    except FormatError:
        return
    assert bool(torch.isfinite(pictures).all())
