"""Several real processes: killed at random, poisoned, hung, launched by torchrun. Slow to start."""

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from skipstep.pipelines.batch.job import run_batch
from skipstep.pipelines.batch.totals import Totals
from tests.pipelines.batch.jobs import ALONE, PROMPTS, job_of, run, temporary_files

SHARDS: dict[str, Any] = {"batch_size": 5, "shard_rows": 25}


def ids_of(output: Path) -> Counter[str]:
    return Counter(path.stem for path in (output / "pictures").rglob("*.png"))


DRIVER = """
import functools, json, sys
from pathlib import Path
from typing import Any
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
    whole = run(job_of(folder, *prompts, output="whole", **SHARDS))
    driver = folder / "driver.py"
    driver.write_text(DRIVER)
    choose = random.Random(7)
    command = [
        sys.executable, str(driver), str(folder),
        json.dumps({"workers": 2, "seconds": seconds}),
    ]  # fmt: skip
    for _ in range(run_kills):
        events = choose.randrange(2, 8)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as begun:
            kill_workers(begun, worker_kills, choose)
            assert begun.stdout is not None
            for _ in range(events):
                begun.stdout.readline()
            begun.kill()
    job = job_of(folder, *prompts, **SHARDS)
    assert not (job.output / "report.json").exists()
    run(job, workers=workers, deaths=1000)
    report = json.loads((folder / "out/report.json").read_text())
    assert report["is_complete"] and report["ok"] == rows and report["digest"] == whole.digest
    ids = ids_of(folder / "out")
    assert len(ids) == rows and set(ids.values()) == {1}
    assert not temporary_files(folder / "out")
    again = run(job, verify=True)
    assert again.digest == whole.digest


def kill_workers(begun: "subprocess.Popen[str]", count: int, choose: random.Random) -> None:
    """Kill a worker of a run after a few of its events, several times."""
    assert begun.stdout is not None
    for _ in range(count):
        for _ in range(choose.randrange(3, 8)):
            begun.stdout.readline()
        children = Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text().split()
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
    return run(job_of(folder, *prompts), workers=1, timeout=timeout)


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
    whole = run(job_of(tmp_path, *prompts, output="whole", **SHARDS))
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


@pytest.mark.slow
def test_accelerate_s_single_process_is_told_and_does_everything_once(tmp_path: Path) -> None:
    job_of(tmp_path, *PROMPTS)
    command = [
        sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu",
        "-m", "skipstep.pipelines.cli", "batch", str(tmp_path / "prompts.jsonl"),
        "-o", str(tmp_path / "out"), "--steps", "2", "--size", "64", "--batch-size", "10",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("note: accelerate launched a single process") == 1
    assert len(ids_of(tmp_path / "out")) == 10


@pytest.mark.slow
def test_the_example_killed_and_run_again_is_complete(tmp_path: Path) -> None:
    prompts = Path(__file__).parents[3] / "examples" / "prompts.jsonl"
    command = [
        sys.executable, "-m", "skipstep.pipelines.cli", "batch", str(prompts),
        "-o", str(tmp_path), "--shard-rows", "1",
    ]  # fmt: skip
    with subprocess.Popen(command) as begun:
        while len(list(tmp_path.glob("job/manifests/*.json"))) < 3:
            assert begun.poll() is None
            time.sleep(0.05)
        begun.kill()
    assert not (tmp_path / "report.json").exists()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "8 of 8 pictures" in done.stdout, done.stderr[-2000:]
    assert len(ids_of(tmp_path)) == 8 and not temporary_files(tmp_path)


def test_a_worker_that_cannot_load_says_why(tmp_path: Path) -> None:
    from skipstep.pipelines.batch.command import Loader
    from skipstep.plugins.errors import PluginError

    with pytest.raises(PluginError, match="dtype 'int8' is not known"):
        run_batch(job_of(tmp_path, "a"), Loader(dtype="int8"), rank=ALONE, workers=1)
