"""Batch jobs of the page: they run beside it, in a process of their own, and outlive a closed tab.

A job is `skipstep batch` on an uploaded file (docs/batch.md), in a folder that is named by chance.
The name is the only key to it, so people with the page open do not see each other's jobs. One job
runs at a time. Stopping loses nothing: starting the same job again goes on.
"""

import logging
import secrets
import shutil
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from skipstep.files.artefact import refusing_files
from skipstep.pipelines.batch.command import Loader, closing_words
from skipstep.pipelines.batch.engines import Load
from skipstep.pipelines.batch.files import read_file
from skipstep.pipelines.batch.job import Job, count_rows, run_batch
from skipstep.pipelines.batch.progress import Counts
from skipstep.pipelines.batch.ranks import Rank
from skipstep.pipelines.batch.rows import Row, RowError, read_row
from skipstep.pipelines.batch.runner import Event
from skipstep.pipelines.batch.stopping import Stop, Stopped, Unwritable
from skipstep.pipelines.ui.limits import Limits, check_upload, read_recipe, read_settings
from skipstep.pipelines.ui.offered import REFERENCE
from skipstep.pipelines.ui.studio import Studio
from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import show

__all__ = ["BatchDesk", "Status"]

logger = logging.getLogger(__name__)

ENDINGS = (".jsonl", ".csv", ".txt", ".parquet")
MOST_JOBS = 20
LARGEST_ZIP = 1 << 30

State = Literal["running", "done", "stopped", "failed"]


@dataclass
class Running:
    """One job and how far it is."""

    key: str
    job: Job
    load: Load
    stop: Stop = field(default_factory=Stop)
    counts: Counts = field(default_factory=Counts)
    total: int | None = None
    state: State = "running"
    words: str = ""
    thread: threading.Thread | None = None


@dataclass(frozen=True)
class Status:
    """What can be shown of a job; `files` are its report and the zip of its pictures."""

    state: State
    done: int
    total: int | None
    words: str
    pictures: tuple[str, ...] = ()
    files: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, without files."""
        return {"state": self.state, "done": self.done, "total": self.total, "words": self.words}


class BatchDesk:
    """Takes jobs, runs them one at a time, and tells how far they are.

    Args:
        folder: gets a folder for every job.
        load: returns the pipeline; None loads the job's model.
        workers: processes of a job; 0 runs it in a thread of this one.
    """

    def __init__(
        self,
        folder: Path,
        studio: Studio,
        limits: Limits,
        load: Load | None = None,
        workers: int = 1,
    ) -> None:
        self.folder = folder
        self.studio = studio
        self.limits = limits
        self.load = load
        self.workers = workers
        self.jobs: dict[str, Running] = {}
        self.lock = threading.Lock()

    def start(
        self, upload: object, *, model: str, recipe: object, steps: object, seed: object
    ) -> str:
        """Begin a job and return its key.

        Raises PluginError for a file or settings that are not allowed, or if one is running.
        """
        source = check_upload(upload, self.limits)
        self.studio.check_model(model)
        row = read_settings({"prompt": "a", "steps": steps, "seed": seed}, self.limits)
        plugins = tuple(read_recipe(recipe))
        ending = source.suffix.lower()
        if ending not in ENDINGS:
            raise PluginError(f"the ending {show(ending)} is not known: {', '.join(ENDINGS)}")
        with refusing_files():
            check_rows(source, self.limits)
        with self.lock:
            if any(each.state == "running" for each in self.jobs.values()):
                raise PluginError("another batch is running on this server: wait for its end")
            key = secrets.token_hex(8)
            place = self.folder / key
            place.mkdir(parents=True)
            prompts = place / f"prompts{ending}"
            shutil.copyfile(source, prompts)
            job = Job(
                prompts=prompts,
                output=place / "out",
                steps=row.steps,
                seed=row.seed,
                plugins=plugins,
                shard_rows=8,
                model=model,
            )
            self.jobs[key] = Running(key, job, self.load or loader_of(model))
            self.forget_old()
            self.run(self.jobs[key])
        return key

    def resume(self, key: object) -> None:
        """Go on with a job that was stopped.

        Raises PluginError.
        """
        with self.lock:
            running = self.find(key)
            if any(each.state == "running" for each in self.jobs.values()):
                raise PluginError("a batch is running on this server: wait for its end")
            running.stop, running.counts = Stop(), Counts()
            running.state, running.words = "running", ""
            self.run(running)

    def run(self, running: Running) -> None:
        """Start the thread that watches the job's process."""
        running.thread = threading.Thread(target=self.work, args=(running,), daemon=True)
        running.thread.start()

    def work(self, running: Running) -> None:
        """Run a job to its end and note how it ended."""

        def tell(event: Event) -> None:
            if running.total is None:
                running.total = count_rows(running.job.output)
            running.counts.add(event)

        try:
            with refusing_files():
                # A launcher's variables say nothing about this process.
                totals = run_batch(
                    running.job,
                    running.load,
                    workers=self.workers,
                    rank=Rank(),
                    stop=running.stop,
                    tell=tell,
                )
        except Stopped:
            running.state, running.words = "stopped", "stopped; what is made is kept"
        except (PluginError, Unwritable, OSError) as error:
            running.state, running.words = "failed", str(error).replace(f"{self.folder}/", "")
        except Exception as error:
            logger.exception("a batch failed")
            running.state = "failed"
            running.words = f"something went wrong inside ({type(error).__name__})"
        else:
            lines = closing_words(running.job.output, totals).splitlines()
            # The folder's name is the key; the lines about files are for a command line.
            told = [line for line in lines if str(self.folder) not in line]
            first = f"{totals.ok} of {totals.rows + totals.rejected} pictures are made"
            self.pack(running)
            running.state, running.words = "done", "; ".join([first, *map(str.strip, told)])

    def pack(self, running: Running) -> None:
        """Put pictures and report into one file to download, if that is not too large."""
        output = running.job.output
        files = [path for path in sorted(output.rglob("*")) if path.is_file()]
        files = [path for path in files if "job" not in path.relative_to(output).parts]
        if sum(path.stat().st_size for path in files) > LARGEST_ZIP:
            return
        with zipfile.ZipFile(output.parent / "pictures.zip", "w") as archive:
            for path in files:
                archive.write(path, path.relative_to(output))

    def stop(self, key: object) -> None:
        """Ask a job to end after the picture that is being made."""
        self.find(key).stop.ask("stopped on the page")

    def status(self, key: object) -> Status:
        """Return how far a job is.

        Raises PluginError if there is none of that name.
        """
        running = self.find(key)
        output = running.job.output
        is_over = running.state != "running"
        files = [
            output / "report.json",
            output / "quarantine.jsonl",
            output.parent / "pictures.zip",
        ]
        pictures = sorted((output / "pictures").rglob("*.png")) if is_over else []
        return Status(
            state=running.state,
            done=running.counts.rows,
            total=running.total,
            words=running.words or running.counts.words(),
            pictures=tuple(str(path) for path in pictures[:24]),
            files=tuple(str(path) for path in files if path.is_file()) if is_over else (),
        )

    def find(self, key: object) -> Running:
        """Return a job by its key."""
        if not isinstance(key, str) or key not in self.jobs:
            raise PluginError("there is no such batch here: start one")
        return self.jobs[key]

    def forget_old(self) -> None:
        """Remove the oldest jobs beyond the most that are kept."""
        for key in list(self.jobs)[: max(0, len(self.jobs) - MOST_JOBS)]:
            shutil.rmtree(self.folder / key, ignore_errors=True)
            del self.jobs[key]


def loader_of(model: str) -> Load:
    """Return what loads a model in the job's own process."""
    return Loader(None if model == REFERENCE else model)


def check_rows(path: Path, limits: Limits) -> None:
    """Refuse a file with too many rows, or with a row that asks for more than is allowed here.

    Rows that are wrong in other ways are left to the batch, which quarantines them.
    """
    for count, (line, found) in enumerate(read_file(path), start=1):
        if count > limits.batch_rows:
            raise RowError(f"the file has more than {limits.batch_rows:,} rows: split it")
        if isinstance(found, RowError):
            continue
        try:
            row = read_row(line, found, Row("", 0, "", 0))
        except RowError:
            continue
        pixels = (row.width or 0) * (row.height or 0) * (row.frames or 1)
        if row.steps > limits.steps or pixels > limits.pixels:
            raise RowError(
                f"line {line}: {row.steps} steps at {row.width}x{row.height} are more than is "
                f"allowed here: {limits.steps} steps, {limits.pixels:,} pixels"
            )
