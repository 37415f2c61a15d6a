"""Splat files: round trips re-render, exact bytes, hostile files, independent readers."""

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.file_checks import FormatError
from skipstep.pipelines.splat.gaussians import Gaussians

torch.set_num_threads(1)

Scene = Callable[..., Gaussians]
Around = Callable[..., Cameras]


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the PSNR in dB."""
    return float(-10 * torch.log10((one - other).square().mean() + 1e-20))


@pytest.mark.parametrize(
    ("ending", "degree", "least"),
    [(".ply", 0, 100), (".ply", 3, 100), (".splat", 0, 60), (".spz", 0, 50), (".spz", 3, 49)],
)
def test_a_file_renders_as_the_scene(
    scene: Scene, around: Around, tmp_path: Path, ending: str, degree: int, least: float
) -> None:
    gaussians, cameras = scene(1500, degree=degree), around(2, width=96, height=96)
    again = Gaussians.load(gaussians.save(tmp_path / f"scene{ending}"))
    assert psnr(gaussians.render(cameras).rgb, again.render(cameras).rgb) > least


def test_sizes_are_those_of_the_formats(scene: Scene, tmp_path: Path) -> None:
    gaussians = scene(1000)
    sizes = {
        e: gaussians.save(tmp_path / f"x{e}").stat().st_size for e in (".ply", ".splat", ".spz")
    }
    assert sizes[".splat"] == 32_000
    assert 68_000 < sizes[".ply"] < 68_600
    assert sizes[".spz"] < sizes[".ply"] / 3


def test_harmonics_are_stored_channel_by_channel(scene: Scene, tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    gaussians = scene(7, degree=2)
    vertex = plyfile.PlyData.read(gaussians.save(tmp_path / "x.ply"))["vertex"]
    # All coefficients of red, then of green: the order that other exporters got wrong.
    np.testing.assert_allclose(vertex["f_rest_3"], gaussians.sh[:, 4, 0])
    np.testing.assert_allclose(vertex["f_rest_8"], gaussians.sh[:, 1, 1])
    np.testing.assert_allclose(vertex["opacity"], torch.logit(gaussians.opacities), rtol=1e-5)
    np.testing.assert_allclose(vertex["scale_1"], gaussians.scales[:, 1].log(), rtol=1e-5)


def test_a_ply_without_normals_and_with_more_columns_is_read(scene: Scene, tmp_path: Path) -> None:
    plyfile = pytest.importorskip("plyfile")
    gaussians = scene(9)
    data = plyfile.PlyData.read(gaussians.save(tmp_path / "x.ply"))["vertex"].data
    names = [name for name in data.dtype.names if not name.startswith("n")]
    rows = np.zeros(9, [("extra", "u1"), *((name, "f8") for name in names)])
    for name in names:
        rows[name] = data[name]
    plyfile.PlyData([plyfile.PlyElement.describe(rows, "vertex")]).write(tmp_path / "y.ply")
    again = Gaussians.load(tmp_path / "y.ply")
    torch.testing.assert_close(again.means, gaussians.means)
    torch.testing.assert_close(again.sh, gaussians.sh)


def test_version_2_of_spz_is_read(tmp_path: Path) -> None:
    body = struct.pack("<IIIBBBB", 0x5053474E, 2, 1, 0, 8, 0, 0)
    body += bytes([0, 1, 0, 0, 255, 255, 0, 2, 0])  # 1, -1, 2 in 1/256, y-up
    body += bytes([255, 128, 128, 128, 160, 160, 160, 128, 128, 128])
    (tmp_path / "old.spz").write_bytes(gzip.compress(body))
    old = Gaussians.load(tmp_path / "old.spz")
    torch.testing.assert_close(old.means, torch.tensor([[1.0, 1.0, -2.0]]))
    torch.testing.assert_close(old.scales, torch.ones(1, 3))
    torch.testing.assert_close(old.quats[0, 0], torch.tensor(1.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.ply", b"not a ply", "no PLY header"),
        (
            "b.ply",
            b"ply\nformat binary_little_endian 1.0\nelement vertex 999999999999\n"
            b"property float x\nend_header\n1234",
            "999999999999 splats of 4 bytes do not fit into its",
        ),
        ("c.ply", b"ply\nformat ascii 1.0\nelement vertex 0\nend_header\n", "save as binary"),
        (
            "d.ply",
            b"ply\nformat binary_little_endian 1.0\nelement vertex 1\n"
            b"property float x\nend_header\n1234",
            "no property 'f_dc_0': is it a file of Gaussians",
        ),
        ("e.splat", b"x" * 33, "its size is no multiple of 32"),
        ("f.spz", b"hello", "its gzip stream is damaged"),
        (
            "g.spz",
            gzip.compress(
                struct.pack("<IIIBBBB", 0x5053474E, 3, 4_000_000_000, 3, 12, 0, 0), mtime=0
            ),
            "4000000000 splats do not fit into its",
        ),
        (
            "h.spz",
            gzip.compress(struct.pack("<IIIBBBB", 0x5053474E, 3, 100, 0, 12, 0, 0), mtime=0),
            "its stream ends before 100 splats",
        ),
    ],
)
def test_a_file_that_lies_is_refused(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FormatError, match=words):
        Gaussians.load(path)


def test_values_that_are_not_numbers_are_refused(scene: Scene, tmp_path: Path) -> None:
    gaussians = scene(3)
    bad = gaussians.each(lambda x: x * float("nan") if x is gaussians.means else x)
    with pytest.raises(ValueError, match="9 values of means are not finite"):
        bad.save(tmp_path / "x.ply")
    rows = np.frombuffer(gaussians.save(tmp_path / "x.splat").read_bytes(), "u1").copy()
    rows[:4] = 255
    (tmp_path / "x.splat").write_bytes(rows.tobytes())
    with pytest.raises(FormatError, match="1 values of means are not finite"):
        Gaussians.load(tmp_path / "x.splat")


def test_logarithms_and_logits_are_recognised(scene: Scene) -> None:
    gaussians = scene(3)
    raw = gaussians.each(lambda x: x.log() if x is gaussians.scales else x)
    with pytest.raises(ValueError, match="scales are not all positive: were they given as log"):
        raw.checked()


@hypothesis.given(st.data())
@hypothesis.settings(max_examples=60)
def test_no_damaged_file_does_more_than_raise_our_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    ending = data.draw(st.sampled_from([".ply", ".splat", ".spz"]))
    whole = Gaussians.from_colours(
        torch.zeros(2, 3), torch.ones(2, 4), torch.ones(2, 3), torch.ones(2), torch.ones(2, 3)
    )
    content = bytearray(whole.save(folder / f"whole{ending}").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = folder / f"damaged{ending}"
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        again = Gaussians.load(damaged)
    except FormatError:
        return
    assert len(again) <= len(content)
    assert not again.problems()


def test_an_unknown_ending_is_refused(scene: Scene, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be one of .ply, .splat, .spz, .html"):
        scene(1).save(tmp_path / "x.obj")


def test_the_page_needs_no_network_and_holds_the_scene(scene: Scene, tmp_path: Path) -> None:
    page = scene(50).save(tmp_path / "x.html", background=(0.0, 0.0, 0.0)).read_text()
    assert "{{" not in page.split("<script>")[0]
    assert "default-src 'none'" in page
    assert "50 Gaussians" in page and "background: #000000" in page
    assert "MIT License" in page
    head = page.split("<script>")[0]
    assert "http://" not in head and "https://" not in head
