"""Whole jobs in one process: what is written, and how every trouble of a long run ends."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from skipstep.pipelines.batch import manifests, outputs, progress
from skipstep.pipelines.batch.attempts import Attempts
from skipstep.pipelines.batch.claims import FolderBusy
from skipstep.pipelines.batch.job import Job, run_batch
from skipstep.pipelines.batch.plan import PlanMismatch
from skipstep.pipelines.batch.ranks import Rank, read_rank
from skipstep.pipelines.batch.runner import Event
from skipstep.pipelines.batch.stopping import Stop, Stopped, Unwritable
from skipstep.pipelines.batch.totals import Totals
from skipstep.plugins import options
from skipstep.plugins.errors import Incompatible, PluginError
from skipstep.testing.families import tiny_pipeline
from skipstep.testing.painter import Painter

ALONE = Rank()


def job_of(folder: Path, *rows: Any, output: str = "out", **settings: Any) -> Job:
    source = folder / "prompts.jsonl"
    listed = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
    source.write_text("".join(json.dumps(row) + "\n" for row in listed))
    return Job(source, folder / output, **{"batch_size": 2, "shard_rows": 4, **settings})


def run(job: Job, pipe: Any = None, **given: Any) -> Totals:
    return run_batch(job, lambda: pipe or Painter(), rank=ALONE, **given)


PROMPTS = [f"thing {i}" for i in range(10)]


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".tmp-")]


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


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    whole = run(job_of(tmp_path, *PROMPTS, output="whole"))
    job = job_of(tmp_path, *PROMPTS)
    for made in (1, 2, 1):
        stop = Stop()
        with pytest.raises(Stopped, match="enough"):
            run(job, stop=stop, tell=stop_after(stop, made))
        assert not temporary_files(job.output)
    assert run(job).digest == whole.digest


def stop_after(stop: Stop, made: int) -> Callable[[Event], None]:
    seen = []

    def tell(event: Event) -> None:
        seen.append(event.kind)
        if seen.count("made") == made:
            stop.ask("enough")

    return tell


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


def test_a_place_where_no_folder_can_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(PluginError, match="no folder can be made there: "):
        run(job_of(tmp_path, "a"))


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


def test_a_second_run_on_a_folder_is_refused_while_the_first_one_works(tmp_path: Path) -> None:
    job = job_of(tmp_path, "a")

    class Second(Painter):
        def __call__(self, *given: Any, **named: Any) -> dict[str, Any]:
            with pytest.raises(FolderBusy, match=rf"another run .*process {os.getpid()}\)"):
                run(job)
            return super().__call__(*given, **named)

    assert run(job, Second()).ok == 1
    assert run(job, Second()).ok == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 4}, "seed: made for 0, running 4"),
        ({"batch_size": 3}, "batch_size: made for 2, running 3"),
        ({"plugins": (options.build("fora", {"interval": 2}),)}, "plugins: made for '[]', running"),
        ({"kind": "webdataset"}, "output: made for 'folder', running 'webdataset'"),
    ],
)
def test_other_settings_on_a_begun_folder_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    run(job_of(tmp_path, "a"))
    with pytest.raises(PlanMismatch) as refused:
        run(job_of(tmp_path, "a", **settings))
    assert message in str(refused.value) and "repeat the command as it was" in str(refused.value)


def test_a_changed_prompt_file_and_another_pipeline_are_refused(tmp_path: Path) -> None:
    run(job_of(tmp_path, "a"))
    with pytest.raises(PlanMismatch, match="prompts: made for"):
        run(job_of(tmp_path, "b"))

    class Other(Painter):
        pass

    with pytest.raises(PlanMismatch, match=r"begun with another pipeline \(pipeline: made for"):
        run(job_of(tmp_path, "a"), Other())


def test_seeded_may_go_on_with_another_batch_size(tmp_path: Path) -> None:
    stop = Stop()
    with pytest.raises(Stopped):
        job = job_of(tmp_path, *PROMPTS, mode="seeded")
        run(job, stop=stop, tell=stop_after(stop, 3))
    pipe = Painter()
    assert run(job_of(tmp_path, *PROMPTS, mode="seeded", batch_size=4), pipe).ok == 10
    assert [len(call) for call in pipe.calls] == [4, 2]


def test_a_recipe_that_cannot_serve_the_pipeline_is_told_before_the_first_picture(
    tmp_path: Path,
) -> None:
    deepcache = options.build("deepcache", {})
    job = job_of(tmp_path, "a", plugins=(deepcache,), size="32")
    with pytest.raises(Incompatible, match="deepcache"):
        run(job, tiny_pipeline("pixart").pipe)


def test_a_row_whose_recipe_cannot_serve_is_quarantined_alone(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b", "plugins": "deepcache"}]
    job = job_of(tmp_path, *rows, size="32", steps=2)
    totals = run(job, tiny_pipeline("pixart").pipe)
    assert totals.statuses == {"error": 1, "ok": 1}
    assert "deepcache" in totals.quarantined[0]["error"]


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


def test_a_shard_that_another_process_has_is_left_to_it(tmp_path: Path) -> None:
    job = job_of(tmp_path, *PROMPTS)
    run(job)
    (job.output / "job/manifests/000001.json").unlink()
    with (job.output / "job/claims.lock").open("r+b") as file:
        child = os.fork()
        if child == 0:
            # A record lock of another process; nothing else is done in this fork.
            fcntl.lockf(file, fcntl.LOCK_EX, 1, 1)
            signal.pause()
            os._exit(0)
    waited = []

    def free(_: float) -> None:
        waited.append(1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(sleep=free, monotonic=time.monotonic)
        patch.setattr("skipstep.pipelines.batch.runner.time", clock)
        wait_for_lock(job.output / "job/claims.lock", 1)
        pipe = Painter()
        assert run(job, pipe).ok == 10
    assert waited == [1] and len(pipe.calls) == 2


def wait_for_lock(path: Path, number: int) -> None:
    while True:
        with path.open("r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
            except OSError:
                return


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


def test_workers_are_spawned_and_never_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(method: str) -> None:
        raise RuntimeError(method)

    monkeypatch.setattr(multiprocessing, "get_context", refuse)
    with pytest.raises(RuntimeError, match="^spawn$"):
        run(job_of(tmp_path, "a"), workers=2)


def test_settings_of_workers_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="--timeout needs --workers 1 or more"):
        run(job_of(tmp_path, "a"), timeout=3.0)
    with pytest.raises(PluginError, match="--workers is for one process"):
        run_batch(job_of(tmp_path, "a"), Painter, workers=2, rank=Rank(0, 2))


def test_rank_and_world_are_taken_from_the_launcher_and_checked() -> None:
    assert read_rank({}) == Rank()
    assert read_rank({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Rank(1, 4, 1)
    assert "torchrun --nproc-per-node" in (read_rank({"ACCELERATE_USE_CPU": "True"}).note or "")
    for wrong in (
        {"RANK": "4", "WORLD_SIZE": "4"},
        {"RANK": "1"},
        {"WORLD_SIZE": "4"},
        {"RANK": "x", "WORLD_SIZE": "4"},
    ):
        with pytest.raises(PluginError, match="the launcher set "):
            read_rank(wrong)


def test_two_ranks_make_each_row_once_to_the_same_bytes(tmp_path: Path) -> None:
    whole = run(job_of(tmp_path, *PROMPTS, output="whole"))
    job = job_of(tmp_path, *PROMPTS)
    stop, first, second = Stop(), Painter(), Painter()
    with pytest.raises(Stopped):
        run_batch(job, lambda: first, rank=Rank(0, 2), stop=stop, tell=stop_after(stop, 3))
    assert run_batch(job, lambda: second, rank=Rank(1, 2, 1)).digest == whole.digest
    made = [prompt for call in first.calls[:2] + second.calls for prompt in call]
    assert sorted(made) == sorted(PROMPTS)


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
