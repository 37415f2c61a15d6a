"""Batch jobs of the page: beside it, one at a time, stoppable, and nothing else can be reached."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skipstep.pipelines.ui.batch_desk import BatchDesk, Status
from skipstep.pipelines.ui.limits import Limits
from skipstep.pipelines.ui.offered import REFERENCE
from skipstep.pipelines.ui.studio import Studio
from skipstep.plugins.errors import PluginError

SETTINGS: dict[str, Any] = {"model": REFERENCE, "recipe": "", "steps": 2, "seed": 0}


@pytest.fixture
def desk(tmp_path: Path, studio: Studio, reference: Any) -> Iterator[BatchDesk]:
    made = BatchDesk(tmp_path / "batches", studio, Limits(), lambda: reference, workers=0)
    yield made
    for key in made.jobs:
        made.stop(key)
        wait(made, key)


def wait(desk: BatchDesk, key: str) -> Status:
    """Wait for the end of a job."""
    thread = desk.jobs[key].thread
    assert thread is not None
    thread.join()
    return desk.status(key)


def rows(tmp_path: Path, *given: dict[str, Any], name: str = "p.jsonl") -> Path:
    """Write a file of prompts."""
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in given))
    return path


def test_a_file_becomes_pictures_to_download(desk: BatchDesk, tmp_path: Path) -> None:
    file = rows(tmp_path, {"prompt": "a sun", "size": "64", "id": "sun"}, {"promt": "typo"})
    key = desk.start(file, **SETTINGS | {"recipe": "fora:interval=2,warmup_steps=1"})
    status = wait(desk, key)
    assert status.state == "done" and status.words.startswith("1 of 2 pictures are made")
    assert str(tmp_path) not in status.words
    assert [Path(picture).name for picture in status.pictures] == ["sun.png"]
    archive = next(Path(file) for file in status.files if file.endswith(".zip"))
    names = zipfile.ZipFile(archive).namelist()
    assert "pictures/000000/sun.png" in names and "quarantine.jsonl" in names
    assert not any(name.startswith("job/") for name in names)


def test_a_stopped_job_goes_on(desk: BatchDesk, tmp_path: Path) -> None:
    file = rows(tmp_path, *({"prompt": "a sun", "size": "64", "steps": 20} for _ in range(6)))
    key = desk.start(file, **SETTINGS)
    desk.stop(key)
    assert wait(desk, key).state == "stopped"
    desk.resume(key)
    status = wait(desk, key)
    assert status.state == "done" and len(status.pictures) == 6


def test_one_job_runs_at_a_time(desk: BatchDesk, tmp_path: Path) -> None:
    file = rows(tmp_path, *({"prompt": "a sun", "steps": 50} for _ in range(9)))
    key = desk.start(file, **SETTINGS)
    with pytest.raises(PluginError, match="another batch is running"):
        desk.start(file, **SETTINGS)
    with pytest.raises(PluginError, match="a batch is running"):
        desk.resume(key)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "steps": 500}, "line 1: 500 steps .* are more than is allowed here"),
        ({"prompt": "a", "size": "8000x8000"}, "line 1: .*8000x8000 are more than is allowed"),
    ],
)
def test_a_row_may_not_ask_for_more_than_the_page(
    desk: BatchDesk, tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(PluginError, match=words):
        desk.start(rows(tmp_path, row), **SETTINGS)
    assert not desk.jobs


def test_what_cannot_be_started_is_refused(desk: BatchDesk, tmp_path: Path) -> None:
    good = rows(tmp_path, {"prompt": "a"})
    desk.limits = Limits(batch_rows=1)
    with pytest.raises(PluginError, match="more than 1 rows"):
        desk.start(rows(tmp_path, {"prompt": "a"}, {"prompt": "b"}), **SETTINGS)
    with pytest.raises(PluginError, match="the ending '.exe' is not known"):
        desk.start(rows(tmp_path, name="p.exe"), **SETTINGS)
    with pytest.raises(PluginError, match="model '/etc' is not offered"):
        desk.start(good, **SETTINGS | {"model": "/etc"})
    with pytest.raises(PluginError, match="unknown plugin"):
        desk.start(good, **SETTINGS | {"recipe": "nonesuch"})
    with pytest.raises(PluginError, match="no such batch here"):
        desk.status("../" * 5)
    with pytest.raises(PluginError, match="no such batch here"):
        desk.stop(["key"])


def test_a_row_cannot_open_a_file(desk: BatchDesk, tmp_path: Path) -> None:
    secret = tmp_path / "schedule.json"
    secret.write_text('{"version": 1, "kind": "skipstep-schedule", "steps": 2, "compute": [0]}')
    plugins = f'cache:gate={{type: schedule, schedule: "{secret}"}}'
    good = {"prompt": "a sun", "size": "64"}
    key = desk.start(rows(tmp_path, good, {"prompt": "a", "plugins": plugins}), **SETTINGS)
    status = wait(desk, key)
    told = json.loads((desk.jobs[key].job.output / "quarantine.jsonl").read_text())
    assert status.words.startswith("1 of 2") and "a path is not taken here" in told["error"]


def test_the_oldest_jobs_go(
    desk: BatchDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("skipstep.pipelines.ui.batch_desk.MOST_JOBS", 2)
    keys = []
    for _ in range(3):
        keys.append(desk.start(rows(tmp_path, {"promt": 1}), **SETTINGS))
        wait(desk, keys[-1])
    assert list(desk.jobs) == keys[1:]
    assert sorted(path.name for path in desk.folder.iterdir()) == sorted(keys[1:])
