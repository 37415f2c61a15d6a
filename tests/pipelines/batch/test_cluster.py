"""The Ray engine: its actor and its watch without Ray, and whole runs on a Ray of this machine.

The latter are slow, and need Ray:
    pip install "skipstep[cluster]" && pytest -m '' tests/pipelines/batch/test_cluster.py
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from skipstep.pipelines.batch import cluster
from skipstep.pipelines.batch.attempts import Attempts
from skipstep.pipelines.batch.cluster import FolderStop, ShardRunner, Watch, handing_on
from skipstep.pipelines.batch.job import Job, prepare, run_batch
from skipstep.pipelines.batch.ranks import Rank
from skipstep.pipelines.batch.runner import Event, Work
from skipstep.pipelines.batch.stopping import Stop, Stopped
from skipstep.plugins.errors import PluginError
from skipstep.testing.painter import Painter
from tests.pipelines.batch.jobs import ALONE, PROMPTS, job_of, run, stop_after, temporary_files


def begun(folder: Path, *rows: Any) -> tuple[Job, Work]:
    """Return a job whose first batch was made and dropped, and what its runners are told."""
    job, stop = job_of(folder, *(rows or PROMPTS)), Stop()
    with pytest.raises(Stopped):
        run(job, stop=stop, tell=stop_after(stop, 1))
    plan = prepare(job, job.defaults, ALONE)
    return job, Work(output=job.output, source=job.prompts, job=plan.job)


def ask(runner: ShardRunner, shard: int) -> Any:
    return json.loads(runner({"shard": shard})["result"])


def test_an_actor_makes_the_shard_it_is_given_and_tells_what_happened(tmp_path: Path) -> None:
    whole = run(job_of(tmp_path, *PROMPTS, output="whole"))
    job, work = begun(tmp_path)
    runner = ShardRunner(work, Painter, None)
    for shard in (2, 0, 1):
        told = ask(runner, shard)
        assert told["error"] is None and told["events"][-1][:2] == ["done", shard]
    assert [event[0] for event in ask(runner, 2)["events"]] == ["kept"]
    assert run(job).digest == whole.digest


def test_an_actor_ends_between_batches_when_the_driver_asks_for_it(tmp_path: Path) -> None:
    _, work = begun(tmp_path)
    folder = work.output / "job"
    stop = Stop()
    with handing_on(stop, folder / cluster.STOP_FILE):
        stop.ask("enough")
        while not (folder / cluster.STOP_FILE).exists():
            time.sleep(0.01)
        pipe = Painter()
        assert ask(ShardRunner(work, lambda: pipe, None), 0)["error"] is None
        assert pipe.calls == []
    FolderStop(folder).check()
    assert not temporary_files(work.output)


def test_an_actor_that_cannot_load_or_see_the_folder_hands_the_reason_on(tmp_path: Path) -> None:
    def refuse() -> Any:
        raise PluginError("no such model")

    _, work = begun(tmp_path)
    assert ask(ShardRunner(work, refuse, None), 0)["error"] == ["PluginError", "no such model"]
    told = ask(ShardRunner(work, lambda: 1 / 0, None), 0)["error"][1]
    assert told == "a worker cannot start: ZeroDivisionError: division by zero"
    (work.output / "job/plan.json").unlink()
    assert "does not see the folder" in ask(ShardRunner(work, Painter, None), 0)["error"][1]


def test_a_batch_that_takes_too_long_is_marked_and_ends_its_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda code: ended.set())
    attempts_folder = tmp_path / "attempts"
    attempts_folder.mkdir()
    attempts = Attempts(tmp_path, 0)
    attempts.start()
    watch = Watch(tmp_path, 0.01)
    watch.hear(Event("begin", 0))
    watch.hear(Event("made", 0))
    attempts.mark("row 0 1")
    watch.hear(Event("begin", 0))
    assert ended.wait(60)
    assert Attempts(tmp_path, 0).timeouts == {"row 0 1"}


def test_without_ray_the_engine_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PluginError, match=r'pip install "skipstep\[cluster\]"'):
        run(job_of(tmp_path, "a"), engine="ray")
    with pytest.raises(PluginError, match="--engine ray is for one process"):
        run_batch(job_of(tmp_path, "a"), Painter, engine="ray", rank=Rank(0, 2))


DRIVER = """
import functools, sys
from pathlib import Path
from skipstep.pipelines.batch.job import Job, run_batch
from skipstep.testing.painter import Painter

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    job = Job(folder / "prompts.jsonl", folder / "out", batch_size=5, shard_rows=25)
    load = functools.partial(Painter, seconds=0.4)
    tell = lambda event: print(event.kind, flush=True)
    run_batch(job, load, engine="ray", workers=2, deaths=1000, tell=tell)
"""


def actors_of(driver: int) -> list[int]:
    """Return the processes of our actors below a driver, in /proc."""
    found, waiting = [], [driver]
    while waiting:
        pid = waiting.pop()
        try:
            name = Path(f"/proc/{pid}/cmdline").read_bytes()
            tasks = list(Path(f"/proc/{pid}/task").iterdir())
            waiting += [int(c) for task in tasks for c in (task / "children").read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if name.startswith(b"ray::MapWorker"):
            found.append(pid)
    return found


def wait_for(kind: str, process: "subprocess.Popen[str]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == kind:
            return
    raise AssertionError(f"the driver ended before it said {kind!r}")


@pytest.fixture
def own_ray(monkeypatch: pytest.MonkeyPatch) -> Any:
    # Ray gives its workers a low priority, which on a busy machine is none at all.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return pytest.importorskip("ray")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for actors in /proc")
def test_ray_600_rows_in_24_shards_with_an_actor_and_the_driver_killed(
    tmp_path: Path, own_ray: Any
) -> None:
    prompts = [f"thing {i}" for i in range(600)]
    settings: dict[str, Any] = {"batch_size": 5, "shard_rows": 25}
    whole = run(job_of(tmp_path, *prompts, output="whole", **settings))
    (tmp_path / "driver.py").write_text(DRIVER)
    command = [sys.executable, str(tmp_path / "driver.py"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as driver:
        wait_for("done", driver)
        os.kill(actors_of(driver.pid)[0], signal.SIGKILL)
        for _ in range(3):
            wait_for("done", driver)
        driver.kill()
    job = job_of(tmp_path, *prompts, **settings)
    assert not (job.output / "report.json").exists()
    # The actors of a driver that was killed have their shards until Ray ends them.
    totals = run(job, engine="ray", workers=1, deaths=1000)
    assert totals.is_complete and totals.ok == 600 and totals.digest == whole.digest
    ids = Counter(path.stem for path in (job.output / "pictures").rglob("*.png"))
    assert len(ids) == 600 and set(ids.values()) == {1} and not temporary_files(job.output)


@pytest.mark.slow
def test_ray_a_row_that_kills_its_actor_and_one_that_hangs_are_quarantined(
    tmp_path: Path, own_ray: Any
) -> None:
    job = job_of(tmp_path, "a", "b", "kill", "hang", "c")
    totals = run(job, engine="ray", workers=1, timeout=5.0)
    assert totals.statuses == {"crash": 1, "ok": 3, "timeout": 1}
    assert totals.is_complete
