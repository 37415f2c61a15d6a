"""What `skipstep batch` says and how it ends.

Exit codes: 0 every row has a picture; 1 some have none; 2 a mistake of the user; 3 the output
folder takes no more; 128 + n stopped by signal n (130 is Ctrl-C). After all but 2 the same command
goes on where it ended.
"""

import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import ValidationError

from skipstep.pipelines.batch.engines import Engine
from skipstep.pipelines.batch.job import Job, count_rows, run_batch
from skipstep.pipelines.batch.progress import lines, progress_bar
from skipstep.pipelines.batch.ranks import read_rank
from skipstep.pipelines.batch.runner import Event, Tell
from skipstep.pipelines.batch.stopping import Stopped, Unwritable
from skipstep.pipelines.batch.tasks import TaskName
from skipstep.pipelines.batch.totals import Totals
from skipstep.pipelines.compare.arms import read_arms, read_recipe
from skipstep.pipelines.generate import load_pipeline
from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import show

__all__ = ["Loader", "closing_words", "read_engine", "read_job", "read_recipes", "run"]

SOME_FAILED, FULL, SIGNALLED = 1, 3, 128
SHOWN = 5
RESULTS = {"pictures": "pictures", "compare": "comparisons", "reconstruct": "scenes"}


@dataclass(frozen=True)
class Loader:
    """Loads the pipeline, in this process or in a worker; None of threads is the default."""

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    task: TaskName = "pictures"

    def __call__(self) -> Any:
        """Return the pipeline."""
        import torch

        if self.task == "reconstruct":
            from skipstep.pipelines.batch.rebuilding import load_pipeline as load_rebuilder

            torch.set_num_threads(self.threads or 1)
            return load_rebuilder()
        if self.threads is not None or self.model is None:
            torch.set_num_threads(self.threads or 1)
        return load_pipeline(self.model, device=self.device, dtype=self.dtype)


def read_job(**settings: Any) -> Job:
    """Check the settings of a job.

    Raises PluginError that names the setting, what was given and what is allowed.
    """
    try:
        return Job(**settings)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = {"kind": "format", "clips": "clip-format"}.get(
            str(problem["loc"][0]), str(problem["loc"][0])
        )
        rule = problem["msg"].replace("Input should", "must")
        raise PluginError(
            f"batch: {name}={show(problem['input'])} is not allowed: {rule}"
        ) from None


def read_recipes(task: str, given: list[Any]) -> dict[str, tuple[Any, ...]]:
    """Return the settings of a job that `-p` and `--recipe` stand for: arms of a comparison, or
    plugins for every row.
    """
    if task == "compare":
        return {"arms": tuple(read_arms(given, 1)) if given else ()}
    return {"plugins": read_recipe(given)}


def read_engine(name: str) -> Engine:
    """Check the name of an engine."""
    if name not in get_args(Engine):
        raise PluginError(
            f"batch: engine={show(name)} is not allowed: must be {' or '.join(get_args(Engine))}"
        )
    return cast(Engine, name)


def say(words: str) -> None:
    """Print a line on stderr."""
    print(words, file=sys.stderr, flush=True)


def run(job: Job, load: Any, *, is_terminal: bool, **options: Any) -> int:
    """Run a job, say how far it is, and return the exit code."""
    rank = read_rank(os.environ)
    if rank.note:
        say(f"note: {rank.note}")
    shown: list[AbstractContextManager[Tell]] = []
    inner: list[Tell] = []

    def tell(event: Event) -> None:
        # The number of rows is known when the plan is there, which is before the first event.
        if not shown:
            total = count_rows(job.output)
            shown.append(
                progress_bar(total) if is_terminal and rank.number == 0 else lines(total, say)
            )
            inner.append(shown[0].__enter__())
        inner[0](event)

    try:
        totals = run_batch(job, load, rank=rank, tell=tell, **options)
    except Stopped as stopped:
        finish(shown)
        say(f"skipstep: {stopped}; {how_far(job)}run the same command again to go on")
        return SIGNALLED + stopped.signal if stopped.signal else SOME_FAILED
    except Unwritable as error:
        finish(shown)
        say(f"skipstep: {error}, then run the same command again; {how_far(job)}nothing is torn")
        return FULL
    except BaseException:
        finish(shown)
        raise
    finish(shown)
    print(closing_words(job.output, totals))
    return 0 if totals.ok == totals.rows + totals.rejected else SOME_FAILED


def finish(shown: list[AbstractContextManager[Tell]]) -> None:
    """Take the progress bar off the screen."""
    while shown:
        shown.pop().__exit__(None, None, None)


def how_far(job: Job) -> str:
    """Say how many shards are done."""
    done = sum(1 for _ in (job.output / "job" / "manifests").glob("[0-9]*.json"))
    return f"{done} shards of {job.shard_rows} rows are done; " if done else ""


def closing_words(output: Path, totals: Totals) -> str:
    """Say what came of a run in a few lines."""
    said = [f"{totals.ok} of {totals.rows + totals.rejected} {RESULTS[totals.task]} in {output}"]
    if totals.seconds_median is not None:
        said[0] += f", {totals.seconds_median:.3g} s each (median)"
    if totals.fraction < 1:
        said.append(f"{totals.skipped:.0%} of the block computations were skipped")
    said += [arm_words(name, found) for name, found in totals.arms.items()]
    if totals.without_plugins:
        said.append(f"{totals.without_plugins} pictures were made without plugins: see report.json")
    if totals.in_smaller_batches:
        said.append(
            f"{totals.in_smaller_batches} pictures were made in smaller batches than planned"
        )
    if totals.rejected:
        rows = "1 row" if totals.rejected == 1 else f"{totals.rejected} rows"
        said.append(f"{rows} could not be used")
    if totals.failed:
        kinds = ", ".join(f"{n} {kind}" for kind, n in totals.statuses.items() if kind != "ok")
        said.append(f"{totals.failed} rows have no picture: {kinds}")
        said += [
            f"  line {row['line']}: {row['status']}: {row['error']}"
            for row in totals.quarantined[:SHOWN]
        ]
    if totals.rejected or totals.failed:
        said.append(f"All of them, with their reasons: {output / 'quarantine.jsonl'}")
    said.append(f"Report: {output / 'report.json'}")
    return "\n".join(said)


def arm_words(name: str, found: dict[str, Any]) -> str:
    """Say what a comparison found out about an arm in one line.

    >>> arm_words("fora", {"fraction": 0.5, "speedup": 1.8, "identical": 1, "broken": 0})
    'fora: 50 % of the blocks, 1.8 times as fast, 1 identical'
    """
    said = []
    if "fraction" in found:
        said.append(f"{found['fraction'] * 100:.0f} % of the blocks")
        said.append(f"{found['speedup']:.3g} times as fast")
    if "psnr" in found:
        psnr = found["psnr"]
        between = "" if psnr["low"] is None else f" ({psnr['low']:.1f} to {psnr['high']:.1f})"
        said.append(f"{psnr['mean']:.1f} dB{between}")
    said += [f"{found[word]} {word}" for word in ("identical", "broken") if found[word]]
    return f"{name}: {', '.join(said)}"
