"""How every trouble of a long run ends: signals, bad rows, full disks, damage, deaths."""

import errno
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from skipstep.pipelines.batch import outputs
from skipstep.pipelines.batch.attempts import Attempts
from skipstep.pipelines.batch.stopping import Stop, Stopped, Unwritable
from skipstep.testing.families import tiny_pipeline
from skipstep.testing.painter import Painter
from tests.pipelines.batch.jobs import PROMPTS, job_of, run, stop_after, temporary_files


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = run(job_of(tmp_path, *PROMPTS, output="whole"))
    job = job_of(tmp_path, *PROMPTS)
    for made in (1, 2, 1):
        stop = Stop()
        with pytest.raises(Stopped, match="enough"):
            run(job, stop=stop, tell=stop_after(stop, made))
        assert not temporary_files(job.output)
    assert run(job).digest == whole.digest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_between_batches_and_the_handlers_are_put_back(
    tmp_path: Path, number: signal.Signals
) -> None:
    class Signalled(Painter):
        def __call__(self, *given: Any, **named: Any) -> dict[str, Any]:
            os.kill(os.getpid(), number)
            return super().__call__(*given, **named)

    before = signal.getsignal(number)
    pipe = Signalled()
    job = job_of(tmp_path, *PROMPTS)
    with pytest.raises(Stopped, match=f"stopped by {number.name}") as stopped:
        run(job, pipe)
    assert stopped.value.signal == number and pipe.calls == [PROMPTS[:2]]
    assert signal.getsignal(number) is before
    assert Attempts(job.output / "job", 0).starts == 0 and not temporary_files(job.output)


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path) -> None:
    class Impatient(Painter):
        def __call__(self, *given: Any, **named: Any) -> dict[str, Any]:
            for _ in range(0 if len(self.calls) > 1 else 2):
                self.calls.append([])
                os.kill(os.getpid(), signal.SIGINT)
            return super().__call__(*given, **named)

    job, pipe = job_of(tmp_path, *PROMPTS), Impatient()
    with pytest.raises(KeyboardInterrupt):
        run(job, pipe)
    assert not temporary_files(job.output)
    assert run(job, pipe).ok == 10


def test_rows_that_fail_are_quarantined_and_the_rest_goes_on(tmp_path: Path) -> None:
    prompts = ["a", "raise", {"prompt": ""}, "nan", "b", "black", "oom-alone", {"promt": "c"}]
    job = job_of(tmp_path, *prompts)
    totals = run(job)
    assert totals.statuses == {"black": 1, "error": 1, "nan": 1, "ok": 2, "oom": 1}
    assert (totals.rows, totals.rejected, totals.failed) == (6, 2, 4)
    lines = [json.loads(line) for line in (job.output / "quarantine.jsonl").open()]
    assert {entry["line"]: entry["status"] for entry in lines} == {
        2: "error", 3: "bad_row", 4: "nan", 6: "black", 7: "oom", 8: "bad_row",
    }  # fmt: skip
    assert next(entry for entry in lines if entry["line"] == 2)["prompt"] == "raise"
    assert "did you mean 'prompt'?" in lines[1]["error"]


def test_what_a_prompt_or_an_error_holds_cannot_reach_a_terminal_or_a_file_name(
    tmp_path: Path,
) -> None:
    class Rude(Painter):
        def __call__(self, *given: Any, **named: Any) -> dict[str, Any]:
            raise RuntimeError("\x1b[2J\x07 <script>\r\n")

    rows = [{"prompt": "a\x1b]0;x\x07"}, {"prompt": "b", "id": "=cmd()"}, {"prompt": "\u202e../"}]
    job = job_of(tmp_path, *rows, {"\x1b[31m": 1})
    totals = run(job, Rude())
    assert totals.statuses == {"error": 1}
    for path in job.output.rglob("*.json*"):
        assert not set(path.read_text()) & {chr(code) for code in (*range(9), *range(11, 32), 127)}
    assert all(entry["error"].isprintable() for entry in totals.quarantined)
    assert all(path.name.isascii() and "cmd" not in path.name for path in job.output.rglob("*"))


def test_retry_failed_makes_only_shards_with_failed_rows_again(tmp_path: Path) -> None:
    job = job_of(tmp_path, *PROMPTS[:4], "raise", *PROMPTS[5:])
    run(job)
    pipe = Painter()
    assert run(job, pipe).failed == 1 and pipe.calls == []
    run(job, pipe, retry_failed=True)
    assert [call for calls in pipe.calls for call in calls].count("thing 5") >= 1
    assert all("thing 0" not in call for call in pipe.calls)


def test_too_many_failures_end_the_run_when_that_was_asked(tmp_path: Path) -> None:
    job = job_of(tmp_path, *["raise"] * 8, shard_rows=2)
    with pytest.raises(Stopped, match="4 rows have failed, more than the 3 allowed"):
        run(job, max_failures=3)


def test_a_full_disk_ends_the_run_in_words_and_leaves_nothing_torn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, *PROMPTS)
    whole = run(job_of(tmp_path, *PROMPTS, output="whole"))
    written = []

    def write(path: Path, content: bytes) -> None:
        written.append(path)
        if len(written) == 6:
            path.write_bytes(content[:10])
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_bytes(content)

    monkeypatch.setattr(outputs, "write_synced", write)
    with pytest.raises(Unwritable, match="the disk is full: free space"):
        run(job)
    assert not temporary_files(job.output)
    assert [path.name for path in (job.output / "pictures").iterdir()] == ["000000"]
    # It was no fault of the batch that was being made.
    assert Attempts(job.output / "job", 1).deaths == {}
    assert run(job).digest == whole.digest


def test_a_folder_that_became_read_only_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(outputs, "write_synced", refuse)
    with pytest.raises(Unwritable, match=r"cannot be written: Read-only file system"):
        run(job_of(tmp_path, "a"))


@pytest.mark.parametrize("damage", ["torn", "empty", "gone", "picture gone", "picture short"])
def test_what_is_damaged_is_made_again(tmp_path: Path, damage: str) -> None:
    job = job_of(tmp_path, *PROMPTS)
    first, pipe = run(job), Painter()
    manifest = job.output / "job/manifests/000001.json"
    picture = job.output / "pictures/000001/0000006.png"
    match damage:
        case "torn":
            manifest.write_bytes(manifest.read_bytes()[:-9])
        case "empty":
            manifest.write_bytes(b"")
        case "gone":
            manifest.unlink()
        case "picture gone":
            picture.unlink()
        case "picture short":
            picture.write_bytes(b"\x89PNG")
    assert run(job, pipe).digest == first.digest
    assert pipe.calls == [PROMPTS[4:6], PROMPTS[6:8]]


def test_verify_finds_a_picture_that_was_changed_in_place(tmp_path: Path) -> None:
    job = job_of(tmp_path, *PROMPTS)
    run(job)
    picture = job.output / "pictures/000001/0000006.png"
    content = picture.read_bytes()
    picture.write_bytes(content[:-1] + b"x")
    run(job)
    assert picture.read_bytes() != content
    run(job, verify=True)
    assert picture.read_bytes() == content


def test_a_row_whose_recipe_cannot_serve_is_quarantined_alone(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "plugins": "deepcache"}]
    job = job_of(tmp_path, *rows, size="32", steps=2)
    totals = run(job, tiny_pipeline("pixart").pipe)
    assert totals.statuses == {"error": 1, "ok": 1}
    assert "deepcache" in totals.quarantined[0]["error"]


def test_what_killed_its_process_twice_is_made_row_by_row_and_then_given_up(
    tmp_path: Path,
) -> None:
    job = job_of(tmp_path, "a", "deadly", "c", "d")

    class Killed(BaseException):
        """Stands for SIGKILL: nothing of ours runs after it."""

    class Deadly(Painter):
        def __call__(self, prompt: Any, *given: Any, **named: Any) -> dict[str, Any]:
            if "deadly" in prompt:
                raise Killed
            return super().__call__(prompt, *given, **named)

    pipe = Deadly()
    for _ in range(3):
        with pytest.raises(Killed):
            run(job, pipe)
    assert pipe.calls == [["a"]]
    totals = run(job, pipe)
    assert totals.statuses == {"crash": 1, "ok": 3}
    assert pipe.calls == [["a"], ["a"], ["c", "d"]]
    assert totals.quarantined[0]["id"] == "0000002" and totals.in_smaller_batches == 1
