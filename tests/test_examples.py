"""The examples run: each is imported as a script would be and does what it says."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from skipstep.pipelines.batch.job import Job, run_batch
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


def test_the_file_of_prompts_becomes_pictures(reference: Any, tmp_path: Path) -> None:
    job = Job(FOLDER / "prompts.jsonl", tmp_path / "out", steps=2, size="64")
    totals = run_batch(job, lambda: reference)
    assert totals.ok == totals.rows > 0 and totals.rejected == 0


def test_every_example_is_tested() -> None:
    told = Path(__file__).read_text() + (FOLDER.parent / "tests/test_write_a_plugin.py").read_text()
    assert all(path.stem in told for path in FOLDER.iterdir() if path.suffix in (".py", ".jsonl"))
