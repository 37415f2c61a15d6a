"""Whole jobs in one process: what is written, in each format, and what stays the same."""

import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipstep.pipelines.batch import manifests, progress
from skipstep.pipelines.batch.job import Job
from skipstep.pipelines.batch.runner import Event
from skipstep.pipelines.batch.stopping import Stop, Stopped
from skipstep.plugins import options
from skipstep.testing.families import tiny_pipeline
from skipstep.testing.painter import Painter
from tests.pipelines.batch.jobs import PROMPTS, job_of, run, stop_after, temporary_files


def test_every_row_gets_a_file_named_by_its_id_and_the_report_counts_it(tmp_path: Path) -> None:
    job = job_of(tmp_path, {"prompt": "../../a\u202e", "id": "first"}, *PROMPTS)
    totals = run(job)
    assert (totals.rows, totals.ok, totals.failed, totals.shards, totals.is_complete) == (
        11, 11, 0, 3, True,
    )  # fmt: skip
    names = sorted(path.stem for path in (job.output / "pictures").rglob("*.png"))
    assert names == [f"{i:07d}" for i in range(2, 12)] + ["first"]
    report = json.loads((job.output / "report.json").read_text())
    assert report["ok"] == 11 and report["digest"] == totals.digest and report["wall_seconds"] > 0
    index = [json.loads(line) for line in (job.output / "index.jsonl").read_text().splitlines()]
    assert len(index) == 11 and index[0]["prompt"] == "../../a\u202e"
    assert all((job.output / entry["file"]).is_file() for entry in index)
    assert not temporary_files(job.output)


def test_a_picture_says_how_it_was_made_and_can_be_told_not_to(tmp_path: Path) -> None:
    row = {"prompt": "a cat", "negative": "bad", "size": "24x16", "guidance": 2, "seed": 5}
    job = job_of(tmp_path, row, model="reference")
    run(job)
    with Image.open(job.output / "pictures/000000/0000001.png") as image:
        assert image.size == (24, 16)
        texts: dict[str, str] = image.text  # type: ignore[attr-defined]  # PNGs have it
    noted = json.loads(texts["skipstep"])
    assert (noted["prompt"], noted["seed"], noted["batch_size"]) == ("a cat", 5, 1)
    assert {"torch", "diffusers", "skipstep", "plugins", "pipeline"} <= noted.keys()
    first, second, third = texts["parameters"].split("\n")
    assert (first, second) == ("a cat", "Negative prompt: bad")
    assert third.startswith("Steps: 20, CFG scale: 2.0, Seed: 5, Size: 24x16, Model: reference")
    plain = job_of(tmp_path, row, output="plain", metadata=False)
    run(plain)
    with Image.open(plain.output / "pictures/000000/0000001.png") as image:
        assert not image.text  # type: ignore[attr-defined]  # PNGs have it


def test_running_again_makes_nothing_and_ends_with_the_same_report(tmp_path: Path) -> None:
    job = job_of(tmp_path, *PROMPTS)
    first, pipe = run(job), Painter()
    events: list[Event] = []
    assert run(job, pipe, tell=events.append).digest == first.digest
    assert pipe.calls == [] and [event.kind for event in events] == ["ready"] + ["kept"] * 3


def test_seeded_may_go_on_with_another_batch_size(tmp_path: Path) -> None:
    stop = Stop()
    with pytest.raises(Stopped):
        job = job_of(tmp_path, *PROMPTS, mode="seeded")
        run(job, stop=stop, tell=stop_after(stop, 3))
    pipe = Painter()
    assert run(job_of(tmp_path, *PROMPTS, mode="seeded", batch_size=4), pipe).ok == 10
    assert [len(call) for call in pipe.calls] == [4, 2]


def test_what_plugins_skipped_is_in_the_report_and_in_the_picture(tmp_path: Path) -> None:
    fora = options.build("fora", {"interval": 2, "warmup_steps": 1})
    job = job_of(tmp_path, "a", "b", plugins=(fora,), size="32", steps=5)
    totals = run(job, tiny_pipeline("pixart").pipe)
    assert 0 < totals.skipped < 1
    noted = json.loads((job.output / "report.json").read_text())
    assert noted["skipped"] == pytest.approx(totals.skipped)
    with Image.open(job.output / "pictures/000000/0000001.png") as image:
        inside = json.loads(image.text["skipstep"])  # type: ignore[attr-defined]  # PNGs have it
    assert inside["fraction"] == pytest.approx(totals.fraction, abs=1e-6)
    assert inside["plugins"][0]["name"] == "fora"


def test_a_tar_holds_each_row_s_picture_metadata_and_prompt_and_is_the_same_again(
    tmp_path: Path,
) -> None:
    job = job_of(tmp_path, *PROMPTS, kind="webdataset")
    folder = run(job_of(tmp_path, *PROMPTS, output="folder"))
    assert run(job).digest == folder.digest
    path = job.output / "shards/000000.tar"
    with tarfile.open(path) as tar:
        assert tar.getnames()[:4] == ["0000001.png", "0000001.json", "0000001.txt", "0000002.png"]
        text = tar.extractfile("0000002.txt")
        assert text is not None and text.read() == b"thing 1"
        png = tar.extractfile("0000001.png")
        assert png is not None
        assert png.read() == (tmp_path / "folder/pictures/000000/0000001.png").read_bytes()
    content = path.read_bytes()
    (job.output / "job/manifests/000000.json").unlink()
    run(job)
    assert path.read_bytes() == content


def test_parquet_holds_the_same_bytes(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    job = job_of(tmp_path, *PROMPTS, kind="parquet")
    folder = run(job_of(tmp_path, *PROMPTS, output="folder"))
    assert run(job).digest == folder.digest
    rows = parquet.read_table(job.output / "shards/000000.parquet").to_pylist()
    assert [row["prompt"] for row in rows] == PROMPTS[:4]
    picture = (tmp_path / "folder/pictures/000000/0000001.png").read_bytes()
    assert rows[0]["image"] == {"bytes": picture, "path": "0000001.png"}


def test_the_time_of_day_plays_no_part(tmp_path: Path) -> None:
    job = job_of(tmp_path, *PROMPTS)
    first = run(job)
    for path in job.output.rglob("*"):
        os.utime(path, (0, 0))
    pipe = Painter()
    again = run(job, pipe)
    assert again.digest == first.digest and pipe.calls == []
    noted = json.loads((job.output / "report.json").read_text())
    assert noted["seconds"] >= 0 and noted["wall_seconds"] >= 0
    manifest = manifests.load(job.output / "job", 0, manifest_key(job))
    assert manifest is not None and manifest.seconds >= 0


def manifest_key(job: Job) -> str:
    return str(json.loads((job.output / "job/manifests/000000.json").open().readline())["key"])


def test_progress_takes_dropped_rows_off_again() -> None:
    counts = progress.Counts()
    for event in (
        Event("kept", 0, ok=4, computed=4.0),
        Event("made", 1, ok=2, computed=1.0),
        Event("made", 2, ok=1, failed=1, computed=0.5),
        Event("done", 1),
        Event("dropped", 2),
        Event("kept", 1, ok=2, computed=1.0),
    ):
        counts.add(event)
    assert (counts.rows, counts.ok, counts.failed, counts.kept) == (6, 6, 0, 4)
    assert counts.words() == "17 % skipped"


def test_a_log_gets_lines_and_a_terminal_a_bar(tmp_path: Path) -> None:
    said: list[str] = []
    with progress.lines(10, said.append) as tell:
        run(job_of(tmp_path, *PROMPTS), tell=tell)
    assert said and said[-1].startswith("10 of 10 pictures, about 0 s left")
    with progress.progress_bar(10) as tell:
        run(job_of(tmp_path, *PROMPTS, output="again"), tell=tell)


def test_the_reference_model_end_to_end(tmp_path: Path) -> None:
    from skipstep.pipelines.reference import load_reference

    pipe = load_reference()
    abcache = options.build("abcache", {"interval": 2, "warmup_steps": 1, "final_steps": 0})
    job = job_of(tmp_path, "a pizza, 3d style", "a red heart", plugins=(abcache,), steps=4)
    totals = run(job, pipe)
    assert totals.ok == 2 and totals.skipped > 0.2
    with Image.open(job.output / "pictures/000000/0000001.png") as image:
        assert image.size == (128, 128) and np.asarray(image).std() > 5
