"""Pictures in files: safe names, nothing overwritten, metadata that makes them again."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from skipstep.pipelines.clip_files import CLIP_FORMATS, save_clip
from skipstep.pipelines.generate import (
    Saved,
    file_name,
    generate,
    is_reference,
    load_pipeline,
    read_size,
    size_arguments,
)
from skipstep.pipelines.pictures import read_metadata, save_png, write_whole
from skipstep.plugins import options
from skipstep.plugins.errors import PluginError
from skipstep.testing.families import tiny_pipeline


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_pipeline("pixart").pipe


def make(pipe: Any, folder: Path, prompts: Any = ("a cat",), **given: Any) -> list[Saved]:
    return generate(pipe, prompts, folder, **{"steps": 3, "size": "32", **given})


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        (
            "a pizza, 3d style, on a blue background",
            "0001-a-pizza-3d-style-on-a-blue-background.png",
        ),
        ("../../etc/passwd", "0001-etc-passwd.png"),
        ("con\x00\n$(rm -rf /)", "0001-con-rm-rf.png"),
        ("кот 猫", "0001-picture.png"),
        ("x" * 500, f"0001-{'x' * 48}.png"),
    ],
)
def test_a_file_name_is_a_number_and_a_slug_whatever_the_prompt(
    tmp_path: Path, prompt: str, name: str
) -> None:
    assert file_name(tmp_path, prompt) == name


def test_numbers_go_on_after_the_highest_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "0007-old.png").touch()
    (tmp_path / "notes.txt").touch()
    assert file_name(tmp_path, "new") == "0008-new.png"


def test_no_picture_is_overwritten_and_the_same_seed_makes_the_same_one(
    pipe: Any, tmp_path: Path
) -> None:
    first, second = make(pipe, tmp_path, num=2, seed=5)
    (again,) = make(pipe, tmp_path, seed=6)
    assert [saved.seed for saved in (first, second, again)] == [5, 6, 6]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "0001-a-cat.png",
        "0002-a-cat.png",
        "0003-a-cat.png",
    ]
    pictures = [np.asarray(Image.open(saved.path)) for saved in (first, second, again)]
    assert (pictures[0] != pictures[1]).any()
    np.testing.assert_array_equal(pictures[1], pictures[2])


def test_metadata_is_enough_to_make_the_picture_again(pipe: Any, tmp_path: Path) -> None:
    plugin = options.build("fora", {"interval": 2, "warmup_steps": 1})
    prompt = 'a "cat" <ünï>'
    (saved,) = make(
        pipe, tmp_path, [prompt], seed=3, steps=4, guidance=2.0, plugins=[plugin], model="tiny"
    )
    noted = json.loads(read_metadata(saved.path))
    assert noted["prompt"] == prompt and noted["seed"] == 3 and noted["model"] == "tiny"
    assert noted["plugins"] == [{"name": "fora", "options": {"interval": 2, "warmup_steps": 1}}]
    assert noted["verdict"].startswith("Skipped ") and 0 < noted["fraction"] < 1
    (again,) = make(
        pipe,
        tmp_path,
        [noted["prompt"]],
        seed=noted["seed"],
        steps=noted["num_inference_steps"],
        guidance=noted["guidance_scale"],
        size=f"{noted['width']}x{noted['height']}",
        plugins=[options.build(entry) for entry in noted["plugins"]],
    )
    np.testing.assert_array_equal(
        np.asarray(Image.open(saved.path)), np.asarray(Image.open(again.path))
    )


def test_plugins_are_off_again_afterwards_also_after_an_exception(
    pipe: Any, tmp_path: Path
) -> None:
    plugin = options.build("fora", {"interval": 2})
    with pytest.raises(Exception, match="divisible by 8"):
        make(pipe, tmp_path, size="33", plugins=[plugin])
    assert not any(row.is_active for row in pipe.list_plugins().rows)
    (saved,) = make(pipe, tmp_path)
    assert saved.report is None and "verdict" not in json.loads(read_metadata(saved.path))


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "x.png", b"half")
    assert list(tmp_path.iterdir()) == []


def test_files_get_the_permissions_of_the_umask(tmp_path: Path) -> None:
    write_whole(tmp_path / "ours", b"x")
    (tmp_path / "plain").write_bytes(b"x")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_picture_of_someone_else_says_nothing(tmp_path: Path) -> None:
    save_png(Image.new("RGB", (4, 4)), tmp_path / "plain.png")
    (tmp_path / "text.png").write_text("no picture")
    for name in ("plain.png", "text.png"):
        with pytest.raises(PluginError, match="says nothing about how it was made"):
            read_metadata(tmp_path / name)


@pytest.mark.parametrize("text", ["", "x", "0", "12x", "99999", "256x256x3", "-5"])
def test_a_size_that_is_none_is_refused_in_words(text: str) -> None:
    with pytest.raises(PluginError, match=f"size '{text}' is not "):
        read_size(text)


def test_sizes_are_exact_also_where_the_pipeline_bins_resolutions(pipe: Any) -> None:
    assert size_arguments(pipe, "24x32") == {
        "width": 24,
        "height": 32,
        "use_resolution_binning": False,
    }
    assert size_arguments(tiny_pipeline("flux").pipe, "24") == {"width": 24, "height": 24}


def test_unusable_arguments_are_refused_in_words(pipe: Any, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="generate: num=0 is not allowed: must be 1 or more"):
        make(pipe, tmp_path, num=0)
    with pytest.raises(PluginError, match="generate: no prompt given"):
        make(pipe, tmp_path, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", CLIP_FORMATS)
def test_clips_are_written_whole_and_say_how_they_were_made(kind: str, tmp_path: Path) -> None:
    wan = tiny_pipeline("wan").pipe
    (saved,) = make(wan, tmp_path, steps=2, clip_format=kind)
    assert saved.path.name == f"0001-a-cat.{kind}"
    described = json.loads(read_metadata(saved.path))
    assert (described["prompt"], described["seed"]) == ("a cat", 0)
    with pytest.raises(PluginError, match="clip_format='gif' is not known: choose webp, mp4"):
        make(wan, tmp_path, clip_format="gif")


def test_webp_clips_keep_every_pixel_and_mp4_nearly(tmp_path: Path) -> None:
    rows = np.arange(32, dtype=np.uint8)[None, :, None, None] * 6
    frames = (
        np.broadcast_to(rows, (5, 32, 32, 3)) + np.arange(5, dtype=np.uint8)[:, None, None, None]
    )
    save_clip(frames, tmp_path / "a.webp", {}, rate=8)
    with Image.open(tmp_path / "a.webp") as image:
        back = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]
    np.testing.assert_array_equal(np.stack(back), frames)
    save_clip(frames, tmp_path / "a.mp4", {}, rate=8)
    av = pytest.importorskip("av")
    with av.open(tmp_path / "a.mp4") as film:
        back = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    assert np.abs(np.stack(back).astype(int) - frames).mean() < 3
    with pytest.raises(PluginError, match="even sides, not 31 x 32: write webp"):
        save_clip(frames[:, :, :31], tmp_path / "b.mp4", {}, rate=8)
    with pytest.raises(PluginError, match="clips are written as webp or mp4, not as .gif"):
        save_clip(frames, tmp_path / "b.gif", {}, rate=8)


def test_reference_models_are_loaded_by_name_unless_a_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_reference(None) and is_reference("picture") and not is_reference("some/model")
    (tmp_path / "picture").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not is_reference("picture")


def test_a_saved_pipeline_is_loaded_from_its_folder(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path)
    loaded = load_pipeline(str(tmp_path), device="cpu", dtype="float32")
    assert type(loaded) is type(pipe)
    for ours, theirs in zip(
        loaded.transformer.parameters(), pipe.transformer.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_model_that_cannot_be_loaded_is_told_in_words(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="cannot be loaded: .*model_index.json"):
        load_pipeline(str(tmp_path), device="cpu")
    with pytest.raises(PluginError, match="dtype 'int8' is not known: choose float32, bfloat16"):
        load_pipeline(str(tmp_path), dtype="int8")


def test_weights_in_pickles_are_refused(pipe: Any, tmp_path: Path) -> None:
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(PluginError, match="cannot be loaded"):
        load_pipeline(str(tmp_path), device="cpu")
