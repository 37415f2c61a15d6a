"""Who works on what: locks that the operating system takes back when a process dies.

One run a folder: `flock` on job/run-{rank}.lock. One worker a shard: a record lock on byte k of
job/claims.lock. Both live in the kernel, so there is nothing to clean up after kill -9, and a
worker that dies frees its shard for the others. Works on Linux and macOS, on local disks and on
network file systems that pass locks on.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from skipstep.plugins.errors import PluginError

__all__ = ["Claims", "FolderBusy", "only_run"]


class FolderBusy(PluginError):
    """Report a second run on one folder."""


@contextlib.contextmanager
def only_run(folder: Path, rank: int = 0) -> Iterator[None]:
    """Hold the folder as the only run of this rank.

    Raises FolderBusy while another process, or another run of this one, holds it.
    """
    handle = os.open(folder / f"run-{rank}.lock", os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 100, 0).decode("ascii", "replace").strip() or "unknown"
            raise FolderBusy(
                f"{folder.parent}: another run is working here (process {owner}): wait for it, "
                "stop it, or give another output folder"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


class Claims:
    """Hold shards for this process.

    Record locks belong to the process, and closing any handle of the file frees them all: keep one
    Claims object a folder and process.
    """

    def __init__(self, folder: Path) -> None:
        self.handle = os.open(folder / "claims.lock", os.O_RDWR | os.O_CREAT, 0o666)

    def close(self) -> None:
        """Free everything."""
        os.close(self.handle)

    @contextlib.contextmanager
    def shard(self, number: int) -> Iterator[bool]:
        """Claim a shard inside a `with` block; gives False if another process has it."""
        try:
            fcntl.lockf(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except (BlockingIOError, PermissionError):
            yield False
            return
        try:
            yield True
        finally:
            fcntl.lockf(self.handle, fcntl.LOCK_UN, 1, number)
