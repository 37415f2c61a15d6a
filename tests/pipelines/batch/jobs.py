"""Jobs for tests: a few rows in a folder, run by one process and a pipeline that paints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skipstep.pipelines.batch.job import Job, run_batch
from skipstep.pipelines.batch.ranks import Rank
from skipstep.pipelines.batch.runner import Event
from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.batch.totals import Totals
from skipstep.testing.painter import Painter

__all__ = ["ALONE", "PROMPTS", "job_of", "run", "stop_after", "temporary_files"]

ALONE = Rank()
PROMPTS = [f"thing {i}" for i in range(10)]


def job_of(folder: Path, *rows: Any, output: str = "out", **settings: Any) -> Job:
    source = folder / "prompts.jsonl"
    listed = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
    source.write_text("".join(json.dumps(row) + "\n" for row in listed))
    return Job(source, folder / output, **{"batch_size": 2, "shard_rows": 4, **settings})


def run(job: Job, pipe: Any = None, **given: Any) -> Totals:
    load = Painter if pipe is None else lambda: pipe
    return run_batch(job, load, rank=ALONE, **given)


def temporary_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".tmp-")]


def stop_after(stop: Stop, made: int) -> Callable[[Event], None]:
    seen = []

    def tell(event: Event) -> None:
        seen.append(event.kind)
        if seen.count("made") == made:
            stop.ask("enough")

    return tell
