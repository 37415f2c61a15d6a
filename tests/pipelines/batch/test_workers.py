"""Several real processes: killed at random, poisoned, hung, launched by torchrun. Slow to start."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from skipstep.pipelines.batch.job import Job, run_batch
from skipstep.pipelines.batch.ranks import Rank
from skipstep.pipelines.batch.totals import Totals
from skipstep.testing.painter import Painter

ALONE = Rank()


def job_of(folder: Path, output: str, prompts: list[str], **settings: Any) -> Job:
    source = folder / "prompts.jsonl"
    source.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return Job(source, folder / output, **{"batch_size": 5, "shard_rows": 25, **settings})


def ids_of(output: Path) -> Counter[str]:
    return Counter(path.stem for path in (output / "pictures").rglob("*.png"))


DRIVER = """
import functools, json, sys
from pathlib import Path
from skipstep.pipelines.batch.job import Job, run_batch
from skipstep.testing.painter import Painter

if __name__ == "__main__":
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    job = Job(folder / "prompts.jsonl", folder / "out", batch_size=5, shard_rows=25)
    load = functools.partial(Painter, seconds=settings.pop("seconds"))
    run_batch(job, load, deaths=1000, tell=lambda event: print(event, flush=True), **settings)
"""


def torture(
    folder: Path, *, rows: int, worker_kills: int, run_kills: int, seconds: float, workers: int = 0
) -> None:
    """Kill workers, and whole runs, at random moments; the end must not show it.

    Args:
        worker_kills: in each run that is then killed.
        run_kills: runs of two workers that are killed.
        seconds: what a batch takes at least.
        workers: of the run that is left alone at the end.
    """
    prompts = [f"thing {i}" for i in range(rows)]
    whole = run_batch(job_of(folder, "whole", prompts), Painter, rank=ALONE)
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    choose = random.Random(7)
    command = [
        sys.executable, str(driver), str(folder),
        json.dumps({"workers": 2, "seconds": seconds}),
    ]  # fmt: skip
    for _ in range(run_kills):
        events = choose.randrange(2, 8)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
            kill_workers(run, worker_kills, choose)
            assert run.stdout is not None
            for _ in range(events):
                run.stdout.readline()
            run.kill()
    job = job_of(folder, "out", prompts)
    assert not (job.output / "report.json").exists()
    run_batch(job, Painter, rank=ALONE, workers=workers, deaths=1000)
    report = json.loads((folder / "out/report.json").read_text())
    assert report["is_complete"] and report["ok"] == rows and report["digest"] == whole.digest
    ids = ids_of(folder / "out")
    assert len(ids) == rows and set(ids.values()) == {1}
    assert not [path for path in (folder / "out").rglob("*") if path.name.startswith(".tmp-")]
    again = run_batch(job, Painter, rank=ALONE, verify=True)
    assert again.digest == whole.digest


def kill_workers(run: "subprocess.Popen[str]", count: int, choose: random.Random) -> None:
    """Kill a worker of a run after a few of its events, several times."""
    assert run.stdout is not None
    for _ in range(count):
        for _ in range(choose.randrange(3, 8)):
            run.stdout.readline()
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        workers = [int(pid) for pid in children if is_worker(int(pid))]
        if workers:
            os.kill(choose.choice(workers), signal.SIGKILL)


def is_worker(pid: int) -> bool:
    try:
        return b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


needs_proc = pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for workers in /proc")


@needs_proc
def test_torture_short_a_worker_and_the_run_are_killed_and_nothing_shows(tmp_path: Path) -> None:
    torture(tmp_path, rows=150, worker_kills=1, run_kills=1, seconds=1.0)


@needs_proc
@pytest.mark.slow
def test_torture_600_rows_in_24_shards_with_12_kills(tmp_path: Path) -> None:
    torture(tmp_path, rows=600, worker_kills=2, run_kills=4, seconds=0.5, workers=2)


def run_poisoned(folder: Path, prompts: list[str], timeout: float | None = None) -> Totals:
    job = job_of(folder, "out", prompts, batch_size=2, shard_rows=4)
    return run_batch(job, Painter, rank=ALONE, workers=1, timeout=timeout)


@pytest.mark.slow
def test_a_row_that_kills_its_worker_is_quarantined_and_the_rest_goes_on(tmp_path: Path) -> None:
    totals = run_poisoned(tmp_path, ["a", "b", "c", "kill"])
    assert totals.statuses == {"crash": 1, "ok": 3}
    assert totals.quarantined[0]["line"] == 4


@pytest.mark.slow
def test_a_row_that_hangs_is_killed_after_the_timeout_and_quarantined(tmp_path: Path) -> None:
    totals = run_poisoned(tmp_path, ["a", "hang", "c"], timeout=2.0)
    assert totals.statuses == {"ok": 2, "timeout": 1}


@pytest.mark.slow
def test_torchrun_s_processes_share_a_folder_and_each_row_is_made_once(tmp_path: Path) -> None:
    prompts = [f"thing {i}" for i in range(100)]
    whole = run_batch(job_of(tmp_path, "whole", prompts), Painter, rank=ALONE)
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port",
        "0", str(driver), str(tmp_path), json.dumps({"seconds": 0.05}),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, textwrap.shorten(done.stderr, 2000)
    assert done.stdout.count("kind='ready'") == 2
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["digest"] == whole.digest and report["ok"] == 100


def test_a_worker_that_cannot_load_says_why(tmp_path: Path) -> None:
    from skipstep.pipelines.batch.command import Loader
    from skipstep.plugins.errors import PluginError

    job = job_of(tmp_path, "out", ["a"])
    with pytest.raises(PluginError, match="dtype 'int8' is not known"):
        run_batch(job, Loader(dtype="int8"), rank=ALONE, workers=1)
