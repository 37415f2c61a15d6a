"""One batch job from its settings: plan it or take its plan up again, run it, report.

The contract, by mode:
    planned   same plan, versions and hardware -> same bytes, for any number of workers and crashes
    seeded    same pictures up to rounding, whatever the batch size, which may change on resuming
    solo      one row a pipeline call: a picture does not depend on the rows beside it
In "planned" a batch that does not fit into memory, or has a row that fails, is made in smaller
calls; the manifest notes the size each picture was really made in.
"""

import contextlib
import hashlib
import json
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from skipstep.pipelines.batch import manifests
from skipstep.pipelines.batch.claims import only_run
from skipstep.pipelines.batch.durable import TEMPORARY, remove
from skipstep.pipelines.batch.engines import Engine, Load, run_here, run_workers
from skipstep.pipelines.batch.files import check_file
from skipstep.pipelines.batch.making import Mode
from skipstep.pipelines.batch.outputs import Format, check_format, folder_of
from skipstep.pipelines.batch.plan import Plan, cut_plan, open_plan
from skipstep.pipelines.batch.ranks import Rank, read_rank
from skipstep.pipelines.batch.rows import LARGEST_SEED, Row, fields_of, recipe_text
from skipstep.pipelines.batch.runner import DEATHS_OF_A_BATCH, Event, Tell, Work
from skipstep.pipelines.batch.stopping import Stop, Unwritable
from skipstep.pipelines.batch.tasks import TaskName
from skipstep.pipelines.batch.totals import Totals, write_report
from skipstep.pipelines.generate import read_size
from skipstep.plugins import options
from skipstep.plugins.errors import PluginError

__all__ = ["Job", "count_rows", "prepare", "run_batch"]

PLAN_WAIT_SECONDS = 600.0


@dataclass(frozen=True, config=ConfigDict(extra="forbid", arbitrary_types_allowed=True))
class Job:
    """The settings of a batch; rows may say their own seed, size, steps, guidance and plugins."""

    prompts: Path
    output: Path
    steps: Annotated[int, Field(ge=1, le=1000, description="denoising steps")] = 20
    guidance: Annotated[float | None, Field(ge=0, description="guidance_scale")] = None
    size: Annotated[str | None, Field(description="256 or 512x768")] = None
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED, description="of rows without one")] = 0
    plugins: Annotated[tuple[Any, ...], Field(description="options objects")] = ()
    batch_size: Annotated[int, Field(ge=1, le=1024, description="rows in a call")] = 1
    shard_rows: Annotated[int, Field(ge=1, le=100_000, description="rows in a shard")] = 64
    mode: Annotated[Mode, Field(description="what is promised to be the same")] = "planned"
    kind: Annotated[Format, Field(description="where pictures go")] = "folder"
    metadata: Annotated[bool, Field(description="write into each file how it was made")] = True
    task: Annotated[TaskName, Field(description="what is made of a row")] = "pictures"
    arms: Annotated[tuple[Any, ...], Field(description="of a comparison: Arm objects")] = ()
    clips: Annotated[Literal["webp", "mp4"], Field(description="files of clips")] = "webp"
    model: Annotated[str, Field(description="what to note as the model")] = ""

    @property
    def defaults(self) -> Row:
        """Return the row that says what rows leave out."""
        width, height = read_size(self.size) if self.size is not None else (None, None)
        return Row(
            id="",
            line=0,
            prompt="",
            seed=self.seed,
            width=width,
            height=height,
            steps=self.steps,
            guidance=self.guidance,
            plugins=recipe_text(self.plugins),
        )

    @property
    def rows_per_call(self) -> int:
        """Return the batch size that this mode takes."""
        return 1 if self.mode == "solo" else self.batch_size

    def describe(self) -> dict[str, Any]:
        """Return what must be the same when the job is taken up again."""
        with self.prompts.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        described: dict[str, Any] = {
            "prompts": digest,
            "model": self.model,
            "plugins": recipe_text(self.plugins),
            "steps": self.steps,
            "guidance": self.guidance,
            "size": self.size,
            "seed": self.seed,
            "mode": self.mode,
            "shard_rows": self.shard_rows,
            "output": self.kind,
            "metadata": self.metadata,
            "task": self.task,
            "arms": {
                arm.name: [options.to_dict(plugin) for plugin in arm.plugins] for arm in self.arms
            },
            "clips": self.clips,
            "skipstep": sys.modules["skipstep"].__version__,
            "torch": torch.__version__,
            "diffusers": metadata.version("diffusers"),
        }
        if self.mode == "planned":
            described["batch_size"] = self.batch_size
        return described


def run_batch(
    job: Job,
    load: Load,
    *,
    engine: Engine = "local",
    workers: int = 0,
    timeout: float | None = None,
    max_failures: int | None = None,
    strict: bool = False,
    verify: bool = False,
    retry_failed: bool = False,
    deaths: int = DEATHS_OF_A_BATCH,
    rank: Rank | None = None,
    stop: Stop | None = None,
    tell: Tell | None = None,
) -> Totals:
    """Make every picture of a job that is not made yet; running it again goes on where it ended.

    Args:
        load: returns the pipeline; called once a process.
        engine: "local" is this machine, "ray" a Ray cluster.
        workers: processes to start; 0 runs in this one, with Ray in one for each GPU.
        timeout: seconds a batch may take in a worker before the worker is killed.
        max_failures: end when this process has seen more rows fail.
        strict: refuse the file if one row is bad, instead of leaving that row out.
        verify: compare the hashes of files that are there, not only their lengths.
        retry_failed: make shards that have failed rows again.
        deaths: how often a batch may take its process with it before it is made row by row.
        rank: which of several processes this is; None asks the launcher's variables.
        stop: asked to end when somebody else wants the run to end.
        tell: called with every Event.

    Raises:
        PluginError: for unusable settings, files and folders.
        Stopped: if the run was asked to end; what is finished stays.
        Unwritable: if the output folder takes no more.
    """
    rank, stop = rank or read_rank(), stop or Stop()
    check_engine(engine, workers, timeout, rank)
    check_task(job)
    started = time.monotonic()
    check_file(job.prompts)
    check_format(job.kind)
    defaults = job.defaults
    folder = make_folders(job)
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_run(folder, rank.number))
        try:
            plan = prepare(job, defaults, rank, strict=strict)
            if retry_failed and rank.number == 0:
                forget_failed(plan)
            work = Work(
                output=job.output.absolute(),
                source=job.prompts.absolute(),
                job=plan.job,
                kind=job.kind,
                mode=job.mode,
                batch_size=job.rows_per_call,
                verify=verify,
                deaths=deaths,
            )
            listener = count_failures(stop, max_failures, tell)
            try:
                if engine == "ray":
                    from skipstep.pipelines.batch.cluster import run_ray

                    run_ray(work, plan, load, stop, listener, workers=workers, timeout=timeout)
                elif workers:
                    run_workers(work, plan, load, stop, listener, workers=workers, timeout=timeout)
                else:
                    turn = rank.number / rank.world
                    run_here(work, plan, load, stop, listener, local=rank.local, turn=turn)
            except BaseException:
                # A report of what there is, unless the disk does not take even that.
                with contextlib.suppress(OSError):
                    report(job, plan, rank, started)
                raise
            return report(job, plan, rank, started)
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise Unwritable.of(error) from error


def check_engine(engine: Engine, workers: int, timeout: float | None, rank: Rank) -> None:
    """Raise PluginError for settings of processes that make no sense together."""
    if (workers or engine == "ray") and rank.world > 1:
        given = "--engine ray" if engine == "ray" else "--workers"
        raise PluginError(f"{given} is for one process, this is one of a launcher's: leave it out")
    if timeout is not None and not workers and engine == "local":
        raise PluginError(
            "--timeout needs --workers 1 or more: a process cannot end its own call that hangs"
        )


def check_task(job: Job) -> None:
    """Raise PluginError for settings that a task has no use for."""
    if job.task == "compare" and not job.arms:
        raise PluginError("--task compare needs an arm: -p easycache:threshold=0.05, or several -p")
    if job.task != "pictures":
        if job.plugins:
            raise PluginError(f"--task {job.task} takes no recipe for all rows: leave it out")
        if job.kind == "parquet":
            raise PluginError(
                f"--task {job.task} writes several files a row: choose folder or webdataset"
            )


def report(job: Job, plan: Plan, rank: Rank, started: float) -> Totals:
    """Write the report; several processes write the same one, each whole."""
    wall = time.monotonic() - started
    return write_report(job.output, plan, job=plan.job, wall_seconds=wall, world=rank.world)


def make_folders(job: Job) -> Path:
    """Make the folders of a job and return the one for its books.

    Raises PluginError if that cannot be done.
    """
    folder = job.output / "job"
    try:
        for path in (folder / "manifests", folder / "attempts", folder_of(job.output, job.kind)):
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PluginError(
            f"{job.output}: no folder can be made there: {error.strerror}: give another --output, "
            "or mend its permissions"
        ) from error
    return folder


def prepare(job: Job, defaults: Row, rank: Rank, *, strict: bool = False) -> Plan:
    """Return the job's plan: the one in its folder, else one cut now by the first process.

    Raises PlanMismatch if the folder was begun with other settings.
    """
    folder = job.output / "job"
    described = json.loads(json.dumps(job.describe()))
    until = time.monotonic() + PLAN_WAIT_SECONDS
    while (plan := open_plan(folder, described)) is None:
        if rank.number == 0:
            for path in folder.glob(f"{TEMPORARY}plan*"):
                remove(path)
            return cut_plan(
                folder,
                job.prompts,
                described,
                defaults,
                batch_size=job.rows_per_call,
                shard_rows=job.shard_rows,
                strict=strict,
                fields=fields_of(job.task),
            )
        if time.monotonic() > until:
            raise PluginError(f"rank {rank.number}: rank 0 has written no plan: look at its output")
        time.sleep(0.2)
    return plan


def count_rows(output: Path) -> int:
    """Return the number of rows of a folder's plan, without checking it; 0 if there is none."""
    try:
        return int(json.loads((output / "job" / "plan.json").read_bytes())["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def forget_failed(plan: Plan) -> None:
    """Set the manifests of shards with failed rows aside, so that these are made again."""
    for number in range(len(plan.offsets)):
        manifest = manifests.load(plan.folder, number, plan.key)
        if manifest is not None and any(row.status != "ok" for row in manifest.rows):
            manifests.set_aside(plan.folder, number)


def count_failures(stop: Stop, most: int | None, tell: Tell | None) -> Tell:
    """Return a listener that ends the run when too many rows have failed."""
    failed = 0

    def listen(event: Event) -> None:
        nonlocal failed
        failed += event.failed if event.kind == "made" else 0
        if most is not None and failed > most:
            stop.ask(f"{failed} rows have failed, more than the {most} allowed")
        if tell is not None:
            tell(event)

    return listen
