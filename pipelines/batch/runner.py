"""Make the shards of a plan, one after the other: claim, make, publish, manifest.

    claim the shard -> mark the batch -> make it -> write -> ... -> publish the files -> manifest

The manifest comes last, so at any instant a shard is done or it is not, and what was made twice is
published once. Any number of these runners may work on one folder; the plan makes their pictures
the same, the claims keep them apart.
"""

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from skipstep.files.artefact import differences
from skipstep.pipelines.batch import manifests, outputs
from skipstep.pipelines.batch.attempts import Attempts
from skipstep.pipelines.batch.claims import Claims
from skipstep.pipelines.batch.durable import publish_file
from skipstep.pipelines.batch.making import Made, Maker, Mode
from skipstep.pipelines.batch.manifests import Manifest, Outcome
from skipstep.pipelines.batch.plan import Batch, Plan, PlanMismatch, batches_of
from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.batch.stopping import Stop, Stopped, Unwritable
from skipstep.pipelines.batch.tasks import open_task
from skipstep.pipelines.compare.run import describe_machine
from skipstep.plugins.errors import PluginError
from skipstep.plugins.fingerprint import fingerprint

__all__ = ["Event", "Runner", "Tell", "Work"]

DEATHS_OF_A_BATCH = 2
WAIT_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Work:
    """What every runner of a job needs to know; `source` is the file of rows, `deaths` how often a
    batch may take its process with it before it is made row by row.
    """

    output: Path
    source: Path
    job: dict[str, Any]
    kind: outputs.Format = "folder"
    mode: Mode = "planned"
    batch_size: int = 1
    verify: bool = False
    deaths: int = DEATHS_OF_A_BATCH


@dataclass(frozen=True, slots=True)
class Event:
    """Something a runner says: "ready" (the model is loaded), "begin" (a batch), "made" (rows),
    "kept" (a shard was done before), "done" (a shard was published) or "dropped" (it was not).

    `computed` is the sum of the rows' fractions of block computations executed.
    """

    kind: Literal["ready", "begin", "made", "kept", "done", "dropped"]
    shard: int = -1
    ok: int = 0
    failed: int = 0
    computed: float = 0.0


Tell = Callable[[Event], None]


class Runner:
    """Works through a plan with one pipeline."""

    def __init__(
        self, work: Work, plan: Plan, pipe: Any, stop: Stop, tell: Tell, turn: float = 0.0
    ) -> None:
        self.work = work
        self.plan = plan
        self.folder = plan.folder
        self.stop = stop
        self.tell = tell
        self.turn = turn
        check_pipeline(self.folder, pipe)
        self.task = open_task(work.job, pipe, work.source)
        self.maker = Maker(self.task, work.mode)
        # A recipe that cannot serve this pipeline is said before the first picture.
        self.task.use(work.job["plugins"])
        self.device = describe_machine(pipe)["device"]
        tell(Event("ready"))

    def run(self, numbers: Sequence[int] | None = None) -> None:
        """Make every shard that has no sound manifest; wait for those that others are making.

        Args:
            numbers: only these shards.

        Raises Stopped, or Unwritable when the disk takes no more.
        """
        claims = Claims(self.folder)
        try:
            given = range(len(self.plan.offsets)) if numbers is None else numbers
            # Runners begin at different places, so they seldom meet.
            first = int(self.turn * len(given))
            waiting = [*given[first:], *given[:first]]
            is_first_look = True
            while waiting:
                left = [number for number in waiting if not self.settle(number, claims)]
                if left and len(left) == len(waiting) and not is_first_look:
                    time.sleep(WAIT_SECONDS)
                waiting, is_first_look = left, False
        except OSError as error:
            raise Unwritable.of(error) from error
        finally:
            self.task.close()
            claims.close()

    def settle(self, number: int, claims: Claims) -> bool:
        """Make a shard unless it is done; False if another runner is at it."""
        self.stop.check()
        with claims.shard(number) as is_ours:
            if not is_ours:
                return False
            done = self.kept(number)
            if done is not None:
                ok = sum(row.status == "ok" for row in done.rows)
                computed = sum(row.fraction for row in done.rows if row.status == "ok")
                self.tell(Event("kept", number, ok, len(done.rows) - ok, computed))
            else:
                self.make_shard(number)
            return True

    def kept(self, number: int) -> Manifest | None:
        """Return the manifest of a shard that is done and whose files are as it says."""
        manifest = manifests.load(self.folder, number, self.plan.key)
        if manifest is None:
            return None
        why = manifests.why_unusable(self.work.output, manifest.files, read=self.work.verify)
        if why is None:
            return manifest
        manifests.set_aside(self.folder, number)
        return None

    def make_shard(self, number: int) -> None:
        """Make one shard and publish it."""
        started = time.monotonic()
        outputs.sweep(self.work.output, self.work.kind, number)
        attempts = Attempts(self.folder, number)
        outcomes: list[Outcome] = []
        try:
            attempts.start()
            writer = outputs.open_writer(self.work.output, self.work.kind, number)
            try:
                for made in self.pictures(number, attempts):
                    outcomes.append(self.write(writer, made))
                files = writer.commit()
            except BaseException:
                writer.abort()
                raise
            manifest = Manifest(
                number,
                self.plan.key,
                outcomes,
                files,
                starts=attempts.starts + 1,
                seconds=time.monotonic() - started,
                peak_bytes=peak_bytes(),
                device=self.device,
            )
            manifests.save(self.folder, manifest)
        except (Stopped, OSError, KeyboardInterrupt):
            attempts.take_back()
            self.tell(Event("dropped", number))
            raise
        attempts.finish()
        self.tell(Event("done", number))

    def pictures(self, number: int, attempts: Attempts) -> Iterator[Made]:
        """Make the rows of a shard, in the order of the plan."""
        for index, batch in enumerate(self.batches(number)):
            unit = f"batch {index}/{len(batch.rows)}"
            is_deadly = attempts.deaths.get(unit, 0) >= self.work.deaths
            alone = [(f"row {index} {place}", [row]) for place, row in enumerate(batch.rows)]
            for part, rows in alone if is_deadly else [(unit, batch.rows)]:
                self.stop.check()
                if is_deadly and part in attempts.deaths:
                    made = [dead(rows[0], part in attempts.timeouts)]
                else:
                    attempts.mark(part)
                    self.tell(Event("begin", number))
                    made = self.maker.make(rows)
                ok = [each for each in made if each.status == "ok"]
                computed = sum(each.fraction for each in ok)
                self.tell(Event("made", number, len(ok), len(made) - len(ok), computed))
                yield from made

    def batches(self, number: int) -> list[Batch]:
        """Return the batches of a shard: as planned, or in "seeded" of the size asked for now."""
        planned = self.plan.shard(number)
        if self.work.mode != "seeded":
            return planned
        groups: dict[Any, list[Row]] = {}
        for batch in planned:
            groups.setdefault(batch.rows[0].group, []).extend(batch.rows)
        return [
            batch for rows in groups.values() for batch in batches_of(rows, self.work.batch_size)
        ]

    def write(self, writer: outputs.Writer, made: Made) -> Outcome:
        """Hand a row's files to the writer and note what came of it."""
        row, digest = made.row, None
        if made.files:
            writer.add(row.id, made.files, made.described)
            digests = [hashlib.sha256(content).hexdigest() for content in made.files.values()]
            digest = digests[0]
            if len(digests) > 1:
                digest = hashlib.sha256(" ".join(digests).encode()).hexdigest()
        return Outcome(
            id=row.id,
            line=row.line,
            seed=row.seed,
            status=made.status,
            batch_size=made.batch_size,
            seconds=round(made.seconds, 6),
            fraction=made.fraction,
            without_plugins=made.without_plugins,
            sha256=digest,
            error=made.error,
            figures=made.figures,
        )


def dead(row: Row, is_timeout: bool) -> Made:
    """Give up a row that took its process with it, in company and alone."""
    if is_timeout:
        return Made(row, "timeout", error="took longer than the timeout, also alone")
    return Made(row, "crash", error="its process died while it was being made, also alone")


def check_pipeline(folder: Path, pipe: Any) -> None:
    """Note what the pipeline is made of, or compare it with what was noted.

    Raises PlanMismatch if the folder was begun with another pipeline.
    """
    now = fingerprint(pipe) | {"dtype": str(getattr(pipe, "dtype", None))}
    path = folder / "pipeline.json"
    try:
        noted = json.loads(path.read_bytes())
    except FileNotFoundError:
        publish_file(path, json.dumps(now, indent=1).encode("ascii"))
        return
    except ValueError:
        raise PluginError(
            f"{path}: damaged: remove it if the model is the one this folder was begun with"
        ) from None
    changed = differences(noted, now)
    if changed:
        raise PlanMismatch(
            f"{folder.parent}: this folder was begun with another pipeline ({'; '.join(changed)}): "
            "use the one it was begun with, or give another output folder"
        )


def peak_bytes() -> int:
    """Return the most memory used so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
