"""Photographs or a prompt to splats: what is taken, what is refused, and a run that can be left."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from skipstep.pipelines.splat.text_to_3d import cut_out
from skipstep.pipelines.ui.limits import Limits
from skipstep.pipelines.ui.long_runs import Result, Step
from skipstep.pipelines.ui.offered import REFERENCE
from skipstep.pipelines.ui.sculpting import (
    LONGEST_SIDE,
    draw_example,
    read_photos,
    run_splats,
    run_splats_from_text,
)
from skipstep.pipelines.ui.splat_tab import framed
from skipstep.pipelines.ui.studio import Studio
from skipstep.plugins.errors import PluginError

Paint = Callable[..., list[Path]]


@pytest.fixture
def paint(tmp_path: Path) -> Paint:
    """Write plain pictures of given sizes."""

    def write(*sizes: tuple[int, int], ending: str = "png", mode: str = "RGB") -> list[Path]:
        paths = []
        for number, size in enumerate(sizes):
            paths.append(tmp_path / f"{number}.{ending}")
            Image.new(mode, size, "red").save(paths[-1])
        return paths

    return write


def test_an_example_becomes_a_scene_with_its_files(tmp_path: Path) -> None:
    photos = draw_example(3, tmp_path)
    given: dict[str, Any] = {"photos": photos, "background": "white", "refine_steps": 2}
    events = list(run_splats(Limits(), tmp_path / "reports", **given))
    steps = [event for event in events if isinstance(event, Step) and event.total]
    assert [event.done for event in steps] == [1, 2]
    made = events[-1].value
    assert isinstance(events[-1], Result) and len(made.gaussians) > 100
    with Image.open(made.turn) as turn:
        assert getattr(turn, "n_frames", 1) == 24
    shown = framed(made)
    assert 'sandbox="allow-scripts"' in shown and "<script" not in shown


def test_leaving_it_ends_the_refinement(tmp_path: Path) -> None:
    given: dict[str, Any] = {"photos": draw_example(3, tmp_path), "background": "white"}
    events = run_splats(Limits(), tmp_path / "reports", **given, refine_steps=400)
    for event in events:
        if isinstance(event, Step) and event.done == 1:
            break
    events.close()  # type: ignore[attr-defined]  # a generator, as the server knows
    assert not (tmp_path / "reports").exists()


def test_leaving_it_ends_the_drawing(studio: Studio, tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": REFERENCE, "prompt": "a sun", "seed": 0, "steps": 100}
    events = run_splats_from_text(studio, Limits(), tmp_path / "reports", **given)
    for event in events:
        if isinstance(event, Step) and event.done == 1:
            break
    events.close()  # type: ignore[attr-defined]  # a generator, as the server knows
    assert not (tmp_path / "reports").exists() and not studio.lock.locked()


def test_a_drawing_of_nothing_is_told(
    studio: Studio, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blank(*given: Any, **named: Any) -> None:
        cut_out(torch.ones(1, 3, 8, 8))

    monkeypatch.setattr("skipstep.pipelines.ui.sculpting.gaussians_from_text", blank)
    given: dict[str, Any] = {"model": REFERENCE, "prompt": "nothing", "seed": 0, "steps": 2}
    with pytest.raises(PluginError, match="^the picture shows one colour alone: another seed"):
        list(run_splats_from_text(studio, Limits(), tmp_path, **given))


def test_photographs_are_shrunk_and_keep_their_cut(paint: Paint) -> None:
    (first, _) = read_photos(paint((1200, 600), (1200, 600), ending="jpg"), Limits())
    assert first.size == (LONGEST_SIDE, LONGEST_SIDE // 2) and first.mode == "RGB"
    assert read_photos(paint((64, 64), (64, 64), mode="RGBA"), Limits())[0].mode == "RGBA"


def test_what_is_no_set_of_photographs_is_refused(paint: Paint, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="1 photographs were given: 2 to 16"):
        read_photos(paint((8, 8)), Limits())
    with pytest.raises(PluginError, match=r"differ in size \(8 x 8, 8 x 9\)"):
        read_photos(paint((8, 8), (8, 9)), Limits())
    with pytest.raises(PluginError, match="photograph 1 has 20 x 20 pixels: at most 100"):
        read_photos(paint((20, 20), (20, 20)), Limits(photo_pixels=100))
    with pytest.raises(PluginError, match="photographs are 7: upload some"):
        read_photos(7, Limits())
    other = tmp_path / "a.png"
    other.write_bytes(b"GIF89a, or so it says")
    with pytest.raises(PluginError, match="photograph 1 cannot be read: give PNG, JPEG or WebP"):
        read_photos([other, other], Limits())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"background": "../x"}, "background '../x' is not known: white, black"),
        ({"refine_steps": 10**6}, "refinement steps=1000000 is not allowed here: 0 to 400"),
        ({"refine_steps": 1.5}, "must be a whole number"),
        ({"refine_steps": "many"}, "must be a number"),
    ],
)
def test_settings_have_an_end(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    usual = {"photos": [], "background": "white", "refine_steps": 0}
    with pytest.raises(PluginError, match=words):
        run_splats(Limits(), tmp_path, **usual | change)


def test_photographs_without_a_plain_background_are_refused(paint: Paint, tmp_path: Path) -> None:
    photos = paint((16, 16), (16, 16))
    events = run_splats(Limits(), tmp_path, photos=photos, background="white", refine_steps=0)
    with pytest.raises(PluginError, match="no plain background"):
        list(events)
