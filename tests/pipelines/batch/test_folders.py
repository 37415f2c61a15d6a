"""Whose folder it is, and who works on what: other jobs, second runs, ranks, claims."""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from skipstep.pipelines.batch.claims import FolderBusy
from skipstep.pipelines.batch.job import run_batch
from skipstep.pipelines.batch.plan import PlanMismatch
from skipstep.pipelines.batch.ranks import Rank, read_rank
from skipstep.pipelines.batch.stopping import Stop, Stopped
from skipstep.plugins import options
from skipstep.plugins.errors import Incompatible, PluginError
from skipstep.testing.families import tiny_pipeline
from skipstep.testing.painter import Painter
from tests.pipelines.batch.jobs import PROMPTS, job_of, run, stop_after


def test_a_place_where_no_folder_can_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(PluginError, match="no folder can be made there: "):
        run(job_of(tmp_path, "a"))


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


def test_a_recipe_that_cannot_serve_the_pipeline_is_told_before_the_first_picture(
    tmp_path: Path,
) -> None:
    deepcache = options.build("deepcache", {})
    job = job_of(tmp_path, "a", plugins=(deepcache,), size="32")
    with pytest.raises(Incompatible, match="deepcache"):
        run(job, tiny_pipeline("pixart").pipe)


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


def test_workers_are_spawned_and_never_forked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(method: str) -> None:
        raise RuntimeError(method)

    monkeypatch.setattr(multiprocessing, "get_context", refuse)
    with pytest.raises(RuntimeError, match="^spawn$"):
        run(job_of(tmp_path, "a"), workers=2)


def test_a_process_that_was_forked_off_torch_is_told_so_and_does_not_hang(tmp_path: Path) -> None:
    job, pipe = job_of(tmp_path, "a"), Painter()
    child = os.fork()
    if child == 0:
        # Nothing here may compute: that is what would hang.
        told = 1
        with contextlib.suppress(BaseException):
            try:
                run(job, pipe)
            except PluginError as error:
                told = 0 if "forked after torch" in str(error) else 1
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


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
