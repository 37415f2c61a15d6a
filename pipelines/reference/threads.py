"""Follow the free cores of a shared machine: a thread that queues for a core stalls all others.

Torch splits every operation evenly over its threads and waits for the slowest. If one core is taken
by a process of higher priority, two threads are slower than one. After each step:
  more than one thread and  process time / wall time < 0.6 threads  ->  one thread less
  idle cores during the step > 0.6                                  ->  one thread more
"""

import os
import time
from pathlib import Path

import torch

__all__ = ["CoreFollower"]

STAT = Path("/proc/stat")


def idle_seconds() -> float:
    """Return the seconds all cores together have idled since boot (Linux; elsewhere 0)."""
    if not STAT.exists():
        return 0.0
    fields = STAT.read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


class CoreFollower:
    """Choose torch's number of threads from what the last step could use."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most or os.cpu_count() or 1
        self.count = self.most
        torch.set_num_threads(self.count)
        self._read()

    def _read(self) -> None:
        self.wall, self.process, self.idle = (
            time.monotonic(),
            time.process_time(),
            idle_seconds(),
        )

    def adjust(self) -> None:
        """Look at the time since the last call and change the number of threads if it pays."""
        wall, process, idle = self.wall, self.process, self.idle
        self._read()
        elapsed = self.wall - wall
        # Shorter than the kernel's clock tick says nothing.
        if elapsed < 0.05:
            return
        if self.count > 1 and (self.process - process) / elapsed < 0.6 * self.count:
            self.count -= 1
        elif self.count < self.most and (self.idle - idle) / elapsed > 0.6:
            self.count += 1
        torch.set_num_threads(self.count)
