"""Manifests and attempt markers: what they survive, and that a torn one is never believed."""

import os
from pathlib import Path

import pytest

from skipstep.pipelines.batch import manifests
from skipstep.pipelines.batch.attempts import Attempts, mark_timeout
from skipstep.pipelines.batch.durable import publish_file, publish_folder
from skipstep.pipelines.batch.manifests import Manifest, Outcome, Written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("manifests", "attempts"):
        (tmp_path / name).mkdir()
    return tmp_path


def some_manifest() -> Manifest:
    rows = [Outcome("a", 1, 7, "ok", sha256="00"), Outcome("b", 2, 8, "nan", error="no")]
    return Manifest(3, "key", rows, [Written("pictures/a.png", 2, "11")])


def test_a_manifest_is_read_back(folder: Path) -> None:
    assert manifests.load(folder, 3, "key") is None
    manifests.save(folder, some_manifest())
    assert manifests.load(folder, 3, "key") == some_manifest()


def test_a_manifest_torn_at_any_byte_is_moved_aside_and_its_shard_not_done(folder: Path) -> None:
    manifests.save(folder, some_manifest())
    path = folder / "manifests" / "000003.json"
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert manifests.load(folder, 3, "key") is None
        assert not path.exists()
    assert len(list((folder / "corrupt").iterdir())) == len(content)


def test_a_manifest_of_another_plan_or_with_a_changed_letter_is_not_believed(folder: Path) -> None:
    manifests.save(folder, some_manifest())
    assert manifests.load(folder, 3, "other") is None
    manifests.save(folder, some_manifest())
    path = folder / "manifests" / "000003.json"
    path.write_bytes(path.read_bytes().replace(b'"nan"', b'"ok" '))
    assert manifests.load(folder, 3, "key") is None


def test_files_that_are_gone_short_or_changed_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    digest = "2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"
    files = [Written("a.png", 3, digest)]
    assert manifests.why_unusable(tmp_path, files) == "a.png is gone"
    path.write_bytes(b"fo")
    assert manifests.why_unusable(tmp_path, files) == "a.png has 2 bytes instead of 3"
    path.write_bytes(b"foo")
    assert manifests.why_unusable(tmp_path, files, read=True) is None
    path.write_bytes(b"bar")
    assert manifests.why_unusable(tmp_path, files) is None
    assert manifests.why_unusable(tmp_path, files, read=True) == "a.png was changed"


def test_a_unit_that_was_begun_and_not_followed_has_died(folder: Path) -> None:
    for _ in range(2):
        attempts = Attempts(folder, 0)
        attempts.start()
        attempts.mark("batch 0/4")
        attempts.mark("batch 1/4")
    seen = Attempts(folder, 0)
    assert seen.deaths == {"batch 1/4": 2} and seen.starts == 2 and not seen.timeouts


def test_who_leaves_on_purpose_takes_its_markers_back(folder: Path) -> None:
    first = Attempts(folder, 0)
    first.start()
    first.mark("batch 0/4")
    second = Attempts(folder, 0)
    second.start()
    second.mark("batch 1/4")
    second.take_back()
    assert Attempts(folder, 0).deaths == {"batch 0/4": 1}
    first.finish()
    assert Attempts(folder, 0).deaths == {}


def test_a_timeout_is_a_death_with_a_reason(folder: Path) -> None:
    attempts = Attempts(folder, 0)
    attempts.start()
    attempts.mark("row 0 1")
    mark_timeout(folder, 0)
    assert Attempts(folder, 0).timeouts == {"row 0 1"}


def test_a_torn_last_marker_is_ignored(folder: Path) -> None:
    attempts = Attempts(folder, 0)
    attempts.start()
    attempts.path.write_bytes(attempts.path.read_bytes() + b"bat")
    assert Attempts(folder, 0).deaths == {}


def test_a_file_that_cannot_be_finished_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    publish_file(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        publish_file(tmp_path / "x", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_a_folder_replaces_the_one_of_a_run_that_was_cut_off(tmp_path: Path) -> None:
    for name, content in (("000001", "old"), (".tmp-000001", "new")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).touch()
    publish_folder(tmp_path / ".tmp-000001", tmp_path / "000001")
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    assert [path.name for path in (tmp_path / "000001").iterdir()] == ["new"]
