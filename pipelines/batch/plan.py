"""The plan: which rows are made together, and in what order, decided once and never by timing.

Rows go into groups of everything that must be equal in one pipeline call (size, steps, guidance,
negative or none, plugins), groups into batches, batches into shards. That alone makes the bytes of
a run the same for any number of workers and crashes. A shard is what is lost by a crash and what
is skipped on resuming.

    job/plan.jsonl      line k is shard k
    job/rejected.jsonl  rows that cannot be used, with their line
    job/plan.json       settings, versions, hash of the input and of plan.jsonl; written last

Cutting streams: what is in memory is the rows of shards that are not full, at most MOST_OPEN, and
the ids.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipstep.files.artefact import differences
from skipstep.pipelines.batch.durable import publish_file, publish_opened, remove, temporary_file
from skipstep.pipelines.batch.files import read_file
from skipstep.pipelines.batch.rows import FIELDS, Fields, Row, RowError, read_row
from skipstep.plugins.errors import PluginError

__all__ = ["Batch", "Plan", "PlanMismatch", "Rejected", "cut_plan", "cut_shards", "open_plan"]

VERSION = 1
MOST_OPEN = 100_000
REJECTED_SHOWN = 5


class PlanMismatch(PluginError):
    """Report a folder that belongs to another job."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that are made in one pipeline call, or in few."""

    rows: list[Row]

    def to_dict(self) -> dict[str, Any]:
        """Write what is the same for all rows once."""
        first = self.rows[0]
        rows = []
        for row in self.rows:
            entry: dict[str, Any] = {
                "id": row.id,
                "line": row.line,
                "prompt": row.prompt,
                "seed": row.seed,
            }
            for name in ("negative", "photos"):
                if (value := getattr(row, name)) is not None:
                    entry[name] = value
            rows.append(entry)
        return {
            "width": first.width,
            "height": first.height,
            "steps": first.steps,
            "guidance": first.guidance,
            "plugins": first.plugins,
            **({} if first.frames is None else {"frames": first.frames}),
            "rows": rows,
        }

    @staticmethod
    def from_dict(written: Mapping[str, Any]) -> "Batch":
        """Read what `to_dict` wrote."""
        shared = {key: value for key, value in written.items() if key != "rows"}
        return Batch([Row(**shared, **row) for row in written["rows"]])


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used: where it stands and why."""

    line: int
    error: str


@dataclass(frozen=True)
class Plan:
    """A plan on disk; shards are read one at a time."""

    folder: Path
    job: dict[str, Any]
    rows: int
    rejected: int
    offsets: Sequence[int]
    key: str

    def shard(self, number: int) -> list[Batch]:
        """Read the batches of one shard."""
        with (self.folder / "plan.jsonl").open("rb") as file:
            file.seek(self.offsets[number])
            return [Batch.from_dict(written) for written in json.loads(file.readline())]


def cut_shards(rows: Iterator[Row], *, batch_size: int, shard_rows: int) -> Iterator[list[Batch]]:
    """Cut rows into shards of batches; the order depends on the rows alone.

    Args:
        rows: in the order of their file.
        batch_size: rows in a batch, at most.
        shard_rows: rows in a shard, rounded up to whole batches.
    """
    whole = -(-shard_rows // batch_size) * batch_size
    open_rows: dict[tuple[Any, ...], list[Row]] = {}
    count = 0
    for row in rows:
        group = open_rows.setdefault(row.group, [])
        group.append(row)
        count += 1
        if len(group) == whole:
            yield batches_of(open_rows.pop(row.group), batch_size)
            count -= whole
        elif count >= MOST_OPEN:
            yield from pack(open_rows, batch_size, whole)
            open_rows.clear()
            count = 0
    yield from pack(open_rows, batch_size, whole)


def batches_of(rows: list[Row], batch_size: int) -> list[Batch]:
    """Cut the rows of one group."""
    return [Batch(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]


def pack(
    groups: Mapping[Any, list[Row]], batch_size: int, shard_rows: int
) -> Iterator[list[Batch]]:
    """Put what is left of all groups into shards; a shard may hold several groups."""
    shard: list[Batch] = []
    count = 0
    for group in groups.values():
        for batch in batches_of(group, batch_size):
            if shard and count + len(batch.rows) > shard_rows:
                yield shard
                shard, count = [], 0
            shard.append(batch)
            count += len(batch.rows)
    if shard:
        yield shard


def read_rows(path: Path, defaults: Row, rejected: list[Rejected], fields: Fields) -> Iterator[Row]:
    """Yield the good rows of a file and collect the others."""
    ids: dict[str, int] = {}
    recipes: dict[str, str] = {}
    for line, found in read_file(path, fields):
        try:
            if isinstance(found, RowError):
                raise found
            row = read_row(line, found, defaults, recipes, fields)
            # Two names that differ in case only are one file on many disks.
            first = ids.setdefault(row.id.lower(), line)
            if first != line:
                raise RowError(f"id {row.id!r} is already that of line {first}: ids are unique")
        except RowError as error:
            rejected.append(Rejected(line, str(error)))
        else:
            yield row


def cut_plan(
    folder: Path,
    source: Path,
    job: dict[str, Any],
    defaults: Row,
    *,
    batch_size: int,
    shard_rows: int,
    strict: bool = False,
    fields: Fields = FIELDS,
) -> Plan:
    """Cut a plan and write it to `folder`.

    Args:
        folder: the job's folder, which exists.
        source: the file of prompts.
        job: what must be the same when the run is resumed.
        defaults: what rows do not say themselves; `seed` is the seed of the job.
        batch_size: rows in a batch, at most.
        shard_rows: rows in a shard.
        strict: refuse the file if a single row is bad.
        fields: those that a row may have.

    Raises PluginError if no row can be used, or with `strict` if one cannot.
    """
    rejected: list[Rejected] = []
    offsets: list[int] = []
    digest = hashlib.sha256()
    count = position = 0
    file = temporary_file(folder / "plan.jsonl")
    try:
        rows = read_rows(source, defaults, rejected, fields)
        for shard in cut_shards(rows, batch_size=batch_size, shard_rows=shard_rows):
            written = json.dumps([batch.to_dict() for batch in shard], separators=(",", ":"))
            line = written.encode("ascii") + b"\n"
            offsets.append(position)
            position += len(line)
            count += sum(len(batch.rows) for batch in shard)
            digest.update(line)
            file.write(line)
        if rejected and (strict or not count):
            raise PluginError(f"{source}: {describe_rejected(rejected)}")
        if not count:
            raise PluginError(f"{source}: no rows: write at least one")
        publish_opened(file, folder / "plan.jsonl")
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        remove(Path(file.name))
        raise
    lines = (json.dumps({"line": bad.line, "error": bad.error}) + "\n" for bad in rejected)
    publish_file(folder / "rejected.jsonl", "".join(lines).encode("ascii"))
    content = {
        "version": VERSION,
        "job": job,
        "rows": count,
        "rejected": len(rejected),
        "sha256": digest.hexdigest(),
        "offsets": offsets,
    }
    publish_file(folder / "plan.json", json.dumps(content).encode("ascii"))
    return Plan(folder, job, count, len(rejected), offsets, key_of(job, digest.hexdigest()))


def key_of(job: Mapping[str, Any], digest: str) -> str:
    """Return what every manifest of this plan carries."""
    text = json.dumps([job, digest], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def describe_rejected(rejected: Sequence[Rejected]) -> str:
    """Say what is wrong with the first bad rows."""
    told = "; ".join(f"line {bad.line}: {bad.error}" for bad in rejected[:REJECTED_SHOWN])
    more = len(rejected) - REJECTED_SHOWN
    rows = "1 row" if len(rejected) == 1 else f"{len(rejected)} rows"
    return f"{rows} cannot be used: {told}" + (f"; and {more} more" if more > 0 else "")


def open_plan(folder: Path, job: Mapping[str, Any]) -> Plan | None:
    """Open the plan of a folder, or return None if it has none yet.

    Raises PlanMismatch if the plan is another job's, PluginError if it is damaged.
    """
    path = folder / "plan.json"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        content = {}
    try:
        if content["version"] != VERSION:
            raise ValueError
        with (folder / "plan.jsonl").open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != content["sha256"]:
                raise ValueError
        plan = Plan(
            folder,
            content["job"],
            content["rows"],
            content["rejected"],
            content["offsets"],
            key_of(content["job"], content["sha256"]),
        )
    except (KeyError, ValueError, TypeError, FileNotFoundError):
        raise PluginError(
            f"{path}: the plan is damaged or of another version: give another output folder, or "
            f"remove {folder} to start again"
        ) from None
    changed = differences(plan.job, job)
    if changed:
        raise PlanMismatch(
            f"{folder.parent}: this folder was begun with other settings ({'; '.join(changed)}): "
            "repeat the command as it was, or give another output folder"
        )
    return plan
