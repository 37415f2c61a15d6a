"""What else runs through the batch: comparisons with figures, reconstructions of photographs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skipstep.pipelines.batch.command import Loader, closing_words
from skipstep.pipelines.batch.job import Job, run_batch
from skipstep.pipelines.batch.rebuilding import Rebuilding, load_pipeline
from skipstep.pipelines.batch.rows import Row, RowError
from skipstep.pipelines.compare.arms import read_arms
from skipstep.pipelines.pictures import read_metadata
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.plugins import options
from skipstep.plugins.errors import Incompatible, PluginError
from skipstep.testing.families import tiny_pipeline

TOY = Path(__file__).parents[3] / "examples" / "toy"


def file_of(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_pipeline("pixart").pipe


def comparison(folder: Path, output: str, *arms: str, **settings: Any) -> Job:
    source = file_of(folder, {"prompt": "a", "id": "a"}, {"prompt": "b", "steps": 3})
    given = {"size": "32", "steps": 4, "task": "compare", **settings}
    return Job(source, folder / output, arms=tuple(read_arms(arms, 1)), **given)


def test_a_comparison_has_each_arm_s_picture_and_figures_and_goes_on_after_a_loss(
    tiny: Any, tmp_path: Path
) -> None:
    arms = ("fora:interval=2,warmup_steps=1", "fora:interval=1")
    job = comparison(tmp_path, "out", *arms, shard_rows=1)
    totals = run_batch(job, lambda: tiny)
    assert totals.ok == 2 and list(totals.arms) == list(arms)
    skipping, whole = totals.arms.values()
    assert skipping["fraction"] < 1 and skipping["psnr"]["mean"] > 10
    # A cache that computes every step draws the same picture, to the bit.
    assert (whole["fraction"], whole["identical"], "psnr" in whole) == (1.0, 2, False)
    folder = job.output / "pictures/000000"
    assert {path.name for path in folder.iterdir()} == {"a.png", "a.arm1.png", "a.arm2.png"}
    assert (folder / "a.png").read_bytes() != (folder / "a.arm1.png").read_bytes()
    with Image.open(folder / "a.png") as plain, Image.open(folder / "a.arm2.png") as same:
        np.testing.assert_array_equal(plain, same)
    assert json.loads(read_metadata(folder / "a.arm1.png"))["plugins"][0]["name"] == "fora"
    assert f"{arms[0]}: " in closing_words(job.output, totals)
    index = [json.loads(line) for line in (job.output / "index.jsonl").open()]
    assert index[0]["file"].endswith("a.png") and "arm1.psnr" in index[0]["figures"]
    (folder / "a.arm1.png").unlink()
    assert run_batch(job, lambda: tiny).digest == totals.digest
    assert (folder / "a.arm1.png").is_file()


def test_an_arm_that_cannot_serve_is_told_before_the_first_picture(
    tiny: Any, tmp_path: Path
) -> None:
    with pytest.raises(Incompatible, match="deepcache"):
        run_batch(comparison(tmp_path, "out", "deepcache"), lambda: tiny)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "compare"}, "--task compare needs an arm: -p easycache"),
        ({"task": "compare", "kind": "parquet"}, "writes several files a row: choose folder or"),
        ({"task": "reconstruct", "plugins": ("fora",)}, "takes no recipe for all rows"),
    ],
)
def test_settings_that_a_task_has_no_use_for_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    arms = tuple(read_arms(["fora"], 1)) if "kind" in settings else ()
    settings["plugins"] = tuple(options.build(name) for name in settings.get("plugins", ()))
    job = Job(file_of(tmp_path, {"prompt": "a"}), tmp_path / "out", arms=arms, **settings)
    with pytest.raises(PluginError, match=message):
        run_batch(job, lambda: None)
    assert not (tmp_path / "out").exists()


def test_rows_of_a_comparison_name_no_plugins_of_their_own(tiny: Any, tmp_path: Path) -> None:
    job = comparison(tmp_path, "out", "fora")
    file_of(tmp_path, {"prompt": "a", "steps": 2}, {"prompt": "b", "plugins": "fora"})
    totals = run_batch(job, lambda: tiny)
    assert (totals.ok, totals.rejected) == (1, 1), totals.quarantined
    noted = json.loads((job.output / "quarantine.jsonl").read_text())
    assert "unknown field 'plugins'" in noted["error"]


def test_photographs_become_gaussians_a_page_s_files_and_a_preview(tmp_path: Path) -> None:
    shutil.copytree(TOY, tmp_path / "toy")
    (tmp_path / "empty").mkdir()
    rows = [{"photos": "toy", "id": "toy"}, {"photos": "empty"}, {"photos": "gone"}, {"prompt": ""}]
    job = Job(file_of(tmp_path, *rows), tmp_path / "out", steps=1, task="reconstruct")
    totals = run_batch(job, Loader(task="reconstruct"))
    assert (totals.ok, totals.rejected, totals.statuses) == (1, 1, {"error": 2, "ok": 1})
    folder = job.output / "pictures/000000"
    assert {path.name for path in folder.iterdir()} == {"toy.ply", "toy.spz", "toy.png"}
    scene = Gaussians.load(folder / "toy.ply")
    noted = json.loads(read_metadata(folder / "toy.png"))
    assert len(scene) == noted["gaussians"] > 100 and noted["photos"] == "toy"
    with Image.open(folder / "toy.png") as preview:
        assert np.asarray(preview).std() > 5
    reasons = {entry["line"]: entry["error"] for entry in totals.quarantined}
    assert "no pictures" in reasons[2] and "there is no such folder" in reasons[3]
    assert "1 of 4 scenes in " in closing_words(job.output, totals)
    pipe = load_pipeline()
    pipe.reconstructor = None  # nothing is made a second time
    assert run_batch(job, lambda: pipe).digest == totals.digest


def test_photographs_are_read_below_the_file_of_rows_only(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "link").symlink_to(TOY)
    task = Rebuilding(load_pipeline(), tmp_path / "base")
    row = Row(id="a", line=1, prompt="", seed=0, photos="link")
    with pytest.raises(RowError, match="leads out of"):
        task.make([row])
