"""Files that are there whole or not at all, also after a power cut.

publish: write a temporary file in the same folder -> fsync -> rename over the name -> fsync the
folder. A rename inside one file system is atomic: a reader sees the old file or the new one. What a
crash leaves behind are temporary names only, and they begin with `.tmp-`.
"""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import IO

__all__ = [
    "TEMPORARY",
    "publish_file",
    "publish_folder",
    "publish_opened",
    "remove",
    "sync_folder",
    "temporary_file",
    "write_synced",
]

TEMPORARY = ".tmp-"


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def temporary_file(path: Path) -> IO[bytes]:
    """Open a temporary file that `publish_opened` will rename to `path`."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{TEMPORARY}{path.name}-")
    # mkstemp makes files private; the umask decides for everybody else's files.
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(name, 0o666 & ~umask)
    os.close(handle)
    return open(name, "wb")


def publish_opened(file: IO[bytes], path: Path) -> None:
    """Close a temporary file and give it its name."""
    with file:
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
    sync_folder(path.parent)


def publish_file(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it."""
    file = temporary_file(path)
    try:
        file.write(content)
        publish_opened(file, path)
    except BaseException:
        # What is in the buffer of a full disk cannot be written on closing either.
        with contextlib.suppress(OSError):
            file.close()
        remove(Path(file.name))
        raise


def write_synced(path: Path, content: bytes) -> None:
    """Write a file of a folder that is still temporary."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def publish_folder(temporary: Path, path: Path) -> None:
    """Give a temporary folder its name; what stood there, from a run that was cut off, goes."""
    sync_folder(temporary)
    if path.exists():
        old = path.with_name(f"{TEMPORARY}old-{path.name}-{os.getpid()}")
        os.rename(path, old)
        remove(old)
    os.rename(temporary, path)
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder as far as it can be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        path.unlink()
