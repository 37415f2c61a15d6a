"""A file of prompts becomes a folder of pictures; kill it, start it again, and it goes on.

    python examples/prompts_to_pictures.py examples/prompts.jsonl out/batch

`skipstep batch` does the same from the command line, with workers and clusters (docs/batch.md).
"""

import sys
from pathlib import Path
from typing import Any

import skipstep
from skipstep.pipelines.batch.job import Job, run_batch
from skipstep.plugins import options


def draw(prompts: Path, output: Path, load: Any, **settings: Any) -> Any:
    """Draw every row, four in a call, skipping work; return what came of them."""
    abcache = options.build("abcache", {"interval": 3})
    job = Job(prompts, output, plugins=(abcache,), batch_size=4, shard_rows=8, **settings)
    return run_batch(job, load, tell=lambda event: print(event.kind, event.shard))


def main() -> None:
    totals = draw(Path(sys.argv[1]), Path(sys.argv[2]), skipstep.load_reference)
    print(f"{totals.ok} of {totals.rows} pictures, {totals.skipped:.0%} of the work skipped")
    for row in totals.quarantined:
        print(f"line {row['line']}: {row['status']}: {row['error']}")


if __name__ == "__main__":
    main()
