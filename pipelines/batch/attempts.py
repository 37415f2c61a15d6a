"""Attempt markers: which batch was being made when a process died.

Before each batch one line is appended to job/attempts/{shard}, and synced, so it survives what the
batch may do to the process or the machine:

    start          a process took the shard
    batch 3        ... is making batch 3
    row 3 1        ... is making row 1 of batch 3 alone
    timeout        ... took too long and is being killed

A unit whose line is followed by `start`, or by nothing when the shard is taken again, has died. A
batch that died twice is made row by row; a row that then dies alone is quarantined. Who leaves on
purpose (Ctrl-C, disk full) takes its lines back, which needs no disk space.
"""

import contextlib
import os
from pathlib import Path

from skipstep.pipelines.batch.durable import sync_folder

__all__ = ["Attempts", "mark_timeout"]

START, TIMEOUT = "start", "timeout"


def file_of(folder: Path, shard: int) -> Path:
    """Return where the markers of a shard are."""
    return folder / "attempts" / f"{shard:06d}"


def append(path: Path, line: str) -> None:
    """Add a line that survives a crash."""
    is_new = not path.exists()
    with path.open("ab") as file:
        file.write(f"{line}\n".encode("ascii"))
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


def mark_timeout(folder: Path, shard: int) -> None:
    """Note that what a shard is at takes too long; its process is about to be killed."""
    append(file_of(folder, shard), TIMEOUT)


class Attempts:
    """The markers of one shard: what happened before, and what is being done now."""

    def __init__(self, folder: Path, shard: int) -> None:
        self.path = file_of(folder, shard)
        try:
            text = self.path.read_bytes().decode("ascii", "replace")
        except FileNotFoundError:
            text = ""
        lines = text.split("\n")[:-1]
        self.size = len(text)
        self.starts = lines.count(START)
        self.deaths: dict[str, int] = {}
        self.timeouts: set[str] = set()
        for place, line in enumerate(lines):
            after = lines[place + 1] if place + 1 < len(lines) else START
            if line not in (START, TIMEOUT) and after in (START, TIMEOUT):
                self.deaths[line] = self.deaths.get(line, 0) + 1
                if after == TIMEOUT:
                    self.timeouts.add(line)

    def start(self) -> None:
        """Note that this process takes the shard."""
        append(self.path, START)

    def mark(self, unit: str) -> None:
        """Note what is made next."""
        append(self.path, unit)

    def take_back(self) -> None:
        """Forget this process's lines: it leaves on purpose."""
        with contextlib.suppress(OSError):
            os.truncate(self.path, self.size)

    def finish(self) -> None:
        """Forget all: the shard has its manifest."""
        self.path.unlink(missing_ok=True)
