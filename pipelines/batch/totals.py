"""What came of a whole run, added up from its manifests, in three files next to the pictures.

Seconds are those of pipeline calls, added over all processes. `digest` is a hash over every row's
picture in the order of the plan: two runs with the same digest made the same bytes.
"""

import array
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from skipstep.pipelines.batch import manifests
from skipstep.pipelines.batch.durable import publish_opened, remove, temporary_file
from skipstep.pipelines.batch.manifests import Manifest, Outcome
from skipstep.pipelines.batch.plan import Plan
from skipstep.pipelines.batch.rows import Row

__all__ = ["Totals", "add_up", "write_report"]

SHOWN = 1000


@dataclass
class Totals:
    """The figures of a run; `skipped` is the share of block computations not executed, `arms` what
    a comparison found out about each.
    """

    rows: int
    rejected: int
    shards: int
    task: str = "pictures"
    shards_done: int = 0
    ok: int = 0
    failed: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    without_plugins: int = 0
    in_smaller_batches: int = 0
    fraction: float = 1.0
    seconds: float = 0.0
    seconds_median: float | None = None
    seconds_p95: float | None = None
    peak_bytes: int | None = None
    digest: str = ""
    arms: dict[str, dict[str, Any]] = field(default_factory=dict)
    quarantined: list[dict[str, Any]] = field(default_factory=list)

    @property
    def skipped(self) -> float:
        """Return the share of block computations that plugins saved."""
        return 1.0 - self.fraction

    @property
    def is_complete(self) -> bool:
        """Say whether every shard is done."""
        return self.shards_done == self.shards

    def to_dict(self) -> dict[str, Any]:
        """Return everything as JSON-able data."""
        return asdict(self) | {"skipped": self.skipped, "is_complete": self.is_complete}


def manifests_of(plan: Plan) -> Iterator[tuple[int, Manifest]]:
    """Yield the manifests that are there, in the order of the plan."""
    for number in range(len(plan.offsets)):
        manifest = manifests.load(plan.folder, number, plan.key)
        if manifest is not None:
            yield number, manifest


def add_up(plan: Plan) -> Totals:
    """Read all manifests and return their sums."""
    task = plan.job.get("task", "pictures")
    totals = Totals(plan.rows, plan.rejected, len(plan.offsets), task)
    statuses: Counter[str] = Counter()
    seconds = array.array("d")
    digest = hashlib.sha256()
    computed = 0.0
    for number, manifest in manifests_of(plan):
        totals.shards_done += 1
        if manifest.peak_bytes is not None:
            totals.peak_bytes = max(totals.peak_bytes or 0, manifest.peak_bytes)
        planned = {row.id: len(batch.rows) for batch in plan.shard(number) for row in batch.rows}
        if plan.job.get("mode") != "planned":
            planned = {}
        for row in manifest.rows:
            statuses[row.status] += 1
            digest.update(f"{row.id} {row.sha256}\n".encode())
            if row.status == "ok":
                seconds.append(row.seconds)
                computed += row.fraction
                totals.without_plugins += row.without_plugins
                totals.in_smaller_batches += row.batch_size < planned.get(row.id, 0)
            elif len(totals.quarantined) < SHOWN:
                totals.quarantined.append(quarantine_entry(row))
    totals.statuses = dict(sorted(statuses.items()))
    totals.ok = statuses["ok"]
    totals.failed = sum(statuses.values()) - totals.ok
    if totals.ok:
        ordered = sorted(seconds)
        totals.fraction = computed / totals.ok
        totals.seconds = sum(ordered)
        totals.seconds_median = ordered[len(ordered) // 2]
        totals.seconds_p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
    totals.digest = digest.hexdigest()
    if arms := plan.job.get("arms"):
        from skipstep.pipelines.batch.comparing import sum_up

        outcomes = (row for _, manifest in manifests_of(plan) for row in manifest.rows)
        totals.arms = sum_up(arms, outcomes)
    return totals


def quarantine_entry(row: Outcome) -> dict[str, Any]:
    """Return what is said of a row that has no picture."""
    return {"id": row.id, "line": row.line, "status": row.status, "error": row.error}


def write_report(output: Path, plan: Plan, **more: Any) -> Totals:
    """Write the three files next to the pictures and return the sums; `more` goes into the report.

    report.json holds the sums, index.jsonl one line a picture, quarantine.jsonl one line a row
    without one: those of the plan that failed, and those that never came into it.
    """
    totals = add_up(plan)
    write_lines(output / "report.json", iter([json.dumps(totals.to_dict() | more, indent=1)]))
    write_lines(output / "index.jsonl", index_lines(plan))
    write_lines(output / "quarantine.jsonl", quarantine_lines(plan))
    return totals


def write_lines(path: Path, lines: Iterator[str]) -> None:
    """Publish a text file of lines without holding it in memory."""
    file = temporary_file(path)
    try:
        for line in lines:
            file.write(line.encode("ascii") + b"\n")
        publish_opened(file, path)
    except BaseException:
        remove(Path(file.name))
        raise


def index_lines(plan: Plan) -> Iterator[str]:
    """Yield where each picture is and what it shows."""
    for number, manifest in manifests_of(plan):
        rows = {row.id: row for batch in plan.shard(number) for row in batch.rows}
        # A row's first file is the one to look at.
        files: dict[str, str] = {}
        for file in manifest.files:
            files.setdefault(Path(file.path).name.partition(".")[0], file.path)
        is_one_file = len(manifest.files) == 1
        shard_file = manifest.files[0].path if is_one_file else None
        for outcome in manifest.rows:
            if outcome.status == "ok":
                where = files.get(outcome.id, shard_file)
                entry: dict[str, Any] = {"id": outcome.id, "file": where}
                entry |= subject_of(rows[outcome.id])
                entry |= {"seed": outcome.seed, "sha256": outcome.sha256}
                if outcome.figures:
                    entry["figures"] = outcome.figures
                yield json.dumps(entry)


def quarantine_lines(plan: Plan) -> Iterator[str]:
    """Yield the rows that have no picture, with their fields where they had sound ones."""
    with (plan.folder / "rejected.jsonl").open("rb") as file:
        for line in file:
            yield json.dumps({"status": "bad_row", **json.loads(line)})
    for number, manifest in manifests_of(plan):
        failed = {row.id: row for row in manifest.rows if row.status != "ok"}
        if not failed:
            continue
        for batch in plan.shard(number):
            for row in batch.rows:
                if row.id in failed:
                    yield json.dumps(quarantine_entry(failed[row.id]) | subject_of(row))


def subject_of(row: Row) -> dict[str, str]:
    """Return what a row is about: its prompt, or its photographs."""
    return {"prompt": row.prompt} if row.photos is None else {"photos": row.photos}
