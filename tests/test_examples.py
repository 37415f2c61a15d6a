"""The examples run: each is imported as a script would be and does what it says."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from skipstep.pipelines.batch.job import Job, run_batch
from skipstep.pipelines.batch.rebuilding import load_pipeline
from skipstep.pipelines.pictures import read_metadata
from skipstep.pipelines.reference import load_reference
from skipstep.testing import tiny_pipeline

FOLDER = Path(__file__).resolve().parents[1] / "examples"


def load(name: str) -> ModuleType:
    """Import an example."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference() -> Any:
    return load_reference()


def test_the_notebook_report_shows_a_timeline_and_a_table(reference: Any) -> None:
    page = load("notebook_report").notebook(reference, ["a sun"], ["abcache"], steps=4)
    assert "step 0: computed" in page and "<table>" in page and "abcache" in page


def test_image_to_image_starts_from_the_picture_and_reports(reference: Any) -> None:
    from diffusers import AutoPipelineForImage2Image

    tiny = tiny_pipeline("flux")
    pipe = AutoPipelineForImage2Image.from_pipe(tiny.pipe)
    pipe.set_progress_bar_config(disable=True)
    restyle = load("image_to_image").restyle
    call = tiny.call | {"num_inference_steps": 6, "strength": 0.5, "output_type": "pil"}
    found = [
        restyle(pipe, Image.new("RGB", (32, 32), colour), "a fox", **call)
        for colour in ("red", "blue")
    ]
    assert found[0][0].tobytes() != found[1][0].tobytes()
    assert found[0][1].steps == 3 and "fbcache" in str(found[0][1])


def test_the_file_of_prompts_becomes_pictures_and_again_nothing(
    reference: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw = load("prompts_to_pictures").draw
    totals = draw(FOLDER / "prompts.jsonl", tmp_path, lambda: reference, steps=4, size="64")
    assert totals.ok == totals.rows == 8 and totals.rejected == 0 and totals.skipped > 0
    assert "done 0" in capsys.readouterr().out
    draw(FOLDER / "prompts.jsonl", tmp_path, lambda: reference, steps=4, size="64")
    assert "done" not in capsys.readouterr().out


def test_the_file_of_scenes_becomes_gaussians(tmp_path: Path) -> None:
    job = Job(FOLDER / "scenes.jsonl", tmp_path, steps=1, task="reconstruct")
    assert run_batch(job, load_pipeline).ok == 1
    assert (tmp_path / "pictures/000000/toy.ply").stat().st_size > 10_000


def test_a_clip_is_filmed_and_says_how_it_was_made(tmp_path: Path) -> None:
    tiny = tiny_pipeline("wan")
    tiny.pipe.set_progress_bar_config(disable=True)
    call = {name: value for name, value in tiny.call.items() if name != "output_type"}
    call |= {"num_inference_steps": 6}
    report = load("video").film(tiny.pipe, "two birds", tmp_path / "clip.webp", **call)
    assert report.steps == 6 and 0 < report.fraction < 1
    with Image.open(tmp_path / "clip.webp") as clip:
        assert clip.n_frames > 1  # type: ignore[attr-defined]  # animations have it
    assert json.loads(read_metadata(tmp_path / "clip.webp"))["prompt"] == "two birds"


def test_every_example_is_tested() -> None:
    told = Path(__file__).read_text() + (FOLDER.parent / "tests/test_write_a_plugin.py").read_text()
    assert all(path.stem in told for path in FOLDER.iterdir() if path.suffix in (".py", ".jsonl"))
