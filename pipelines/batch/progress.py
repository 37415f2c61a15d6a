"""How far a run is: counts from the runners' events, as a bar or as lines.

Rows count when they are made; if their shard is dropped they are taken off again.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from skipstep.pipelines.batch.runner import Event, Tell

__all__ = ["Counts", "lines", "progress_bar"]

LINE_SECONDS = 10.0


@dataclass
class Counts:
    """Rows so far: with a picture, without, and the block computations that were executed."""

    ok: int = 0
    failed: int = 0
    computed: float = 0.0
    kept: int = 0
    settled: set[int] = field(default_factory=set)
    pending: dict[int, list[Event]] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        """Take an event into account; workers also find kept what another has just done."""
        if event.kind == "made":
            self.count(event, 1)
            self.pending.setdefault(event.shard, []).append(event)
        elif event.kind == "kept" and event.shard not in self.settled:
            self.count(event, 1)
            self.kept += event.ok + event.failed
            self.settled.add(event.shard)
        elif event.kind == "done":
            self.settled.add(event.shard)
            self.pending.pop(event.shard, None)
        elif event.kind == "dropped":
            for lost in self.pending.pop(event.shard, []):
                self.count(lost, -1)

    def count(self, event: Event, sign: int) -> None:
        """Add the rows of an event, or take them off."""
        self.ok += sign * event.ok
        self.failed += sign * event.failed
        self.computed += sign * event.computed

    @property
    def rows(self) -> int:
        """Return how many rows are behind us."""
        return self.ok + self.failed

    def words(self) -> str:
        """Say how much was skipped and what failed.

        >>> Counts(ok=8, failed=1, computed=4.0).words()
        '50 % skipped, 1 failed'
        """
        parts = []
        if self.ok and self.computed < self.ok:
            parts.append(f"{1 - self.computed / self.ok:.0%} skipped".replace("%", " %"))
        if self.failed:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Tell]:
    """Show a bar with the time left on a terminal."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    counts = Counts()
    with Progress(
        TextColumn("pictures"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        # Pictures come at an even pace, so the estimate looks at the whole of the last hour.
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        speed_estimate_period=3600,
    ) as bar:
        task = bar.add_task("loading the model", total=total)

        def tell(event: Event) -> None:
            counts.add(event)
            bar.update(task, completed=counts.rows, description=counts.words())

        yield tell


@contextlib.contextmanager
def lines(total: int, say: Callable[[str], None]) -> Iterator[Tell]:
    """Say a line now and then, for logs; intervals are taken from a clock that never goes back."""
    counts = Counts()
    started = said = time.monotonic()

    def tell(event: Event) -> None:
        nonlocal said
        counts.add(event)
        now = time.monotonic()
        if event.kind != "done" or (now - said < LINE_SECONDS and counts.rows < total):
            return
        said = now
        made = counts.rows - counts.kept
        left = (now - started) / made * (total - counts.rows) if made else 0.0
        words = [f"{counts.rows} of {total} pictures", f"about {left:.0f} s left", counts.words()]
        say(", ".join(word for word in words if word))

    yield tell
