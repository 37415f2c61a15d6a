"""Where results go: a folder of files, WebDataset tars, or Parquet; one writer a shard.

A writer collects the files of its shard under a temporary name and publishes them whole. Names
are made from shard numbers and ids alone. Tars have no times and no owners, so equal pictures make
equal tars.

    folder      pictures/000012/{id}.png
    webdataset  shards/000012.tar       {id}.png, {id}.json, {id}.txt (the prompt)
    parquet     shards/000012.parquet   id, prompt, seed, image, metadata

Clips are {id}.webp or .mp4, comparisons have {id}.arm1.png beside it, reconstructions {id}.ply.
"""

import hashlib
import io
import json
import os
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from skipstep.pipelines.batch.durable import (
    TEMPORARY,
    publish_file,
    publish_folder,
    publish_opened,
    remove,
    temporary_file,
    write_synced,
)
from skipstep.pipelines.batch.manifests import Written
from skipstep.plugins.errors import PluginError

__all__ = ["Format", "Writer", "check_format", "folder_of", "open_writer", "sweep"]

Format = Literal["folder", "webdataset", "parquet"]


class Writer(Protocol):
    """Takes the pictures of one shard in the order of the plan."""

    def add(self, name: str, files: Mapping[str, bytes], described: dict[str, Any]) -> None:
        """Take one row's files by their ending; `name` is its id."""

    def commit(self) -> list[Written]:
        """Publish what was taken and return the files."""

    def abort(self) -> None:
        """Drop what was taken."""


def folder_of(output: Path, kind: Format) -> Path:
    """Return the folder that holds the pictures or shards."""
    return output / ("pictures" if kind == "folder" else "shards")


def check_format(kind: Format) -> None:
    """Raise PluginError for a format that cannot be written here."""
    if kind == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise PluginError(
                'output "parquet" needs pyarrow: pip install "skipstep[parquet]", or choose folder '
                "or webdataset"
            ) from None


def open_writer(output: Path, kind: Format, shard: int) -> Writer:
    """Return a writer for one shard."""
    folder = folder_of(output, kind)
    if kind == "folder":
        return FolderWriter(folder, shard)
    return TarWriter(folder, shard) if kind == "webdataset" else ParquetWriter(folder, shard)


def sweep(output: Path, kind: Format, shard: int) -> None:
    """Remove what a killed process left of a shard; only whoever has claimed it may do this."""
    folder = folder_of(output, kind)
    for pattern in (f"{TEMPORARY}{shard:06d}*", f"{TEMPORARY}old-{shard:06d}*"):
        for path in folder.glob(pattern):
            remove(path)


class FolderWriter:
    """PNG files in a folder that gets its name when it is complete."""

    def __init__(self, folder: Path, shard: int) -> None:
        self.path = folder / f"{shard:06d}"
        self.temporary = folder / f"{TEMPORARY}{shard:06d}-{os.getpid()}"
        self.temporary.mkdir()
        self.written: list[Written] = []

    def add(self, name: str, files: Mapping[str, bytes], described: dict[str, Any]) -> None:
        """Write one row's files."""
        for ending, content in files.items():
            write_synced(self.temporary / f"{name}.{ending}", content)
            path = f"{self.path.parent.name}/{self.path.name}/{name}.{ending}"
            digest = hashlib.sha256(content).hexdigest()
            self.written.append(Written(path, len(content), digest))

    def commit(self) -> list[Written]:
        """Give the folder its name."""
        publish_folder(self.temporary, self.path)
        return self.written

    def abort(self) -> None:
        """Remove the files."""
        remove(self.temporary)


class TarWriter:
    """One tar in WebDataset's layout: members of a sample share their name up to the dot."""

    def __init__(self, folder: Path, shard: int) -> None:
        self.path = folder / f"{shard:06d}.tar"
        self.file = temporary_file(self.path)
        self.tar = tarfile.TarFile(fileobj=self.file, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, name: str, files: Mapping[str, bytes], described: dict[str, Any]) -> None:
        """Append one row's files, their metadata and the prompt."""
        text = json.dumps(described, ensure_ascii=False, allow_nan=False)
        subject = described.get("prompt") or described.get("photos") or ""
        members = {**files, "json": text.encode(), "txt": str(subject).encode()}
        for ending, content in members.items():
            member = tarfile.TarInfo(f"{name}.{ending}")
            member.size = len(content)
            self.tar.addfile(member, io.BytesIO(content))

    def commit(self) -> list[Written]:
        """Give the tar its name."""
        self.tar.close()
        publish_opened(self.file, self.path)
        return [written(self.path)]

    def abort(self) -> None:
        """Remove the tar."""
        drop(self.file)


class ParquetWriter:
    """One Parquet file; `image` is the struct that the `datasets` library reads as a picture."""

    def __init__(self, folder: Path, shard: int) -> None:
        self.path = folder / f"{shard:06d}.parquet"
        self.rows: list[dict[str, Any]] = []

    def add(self, name: str, files: Mapping[str, bytes], described: dict[str, Any]) -> None:
        """Keep one row; a shard is small enough for memory."""
        ((ending, content),) = files.items()
        self.rows.append(
            {
                "id": name,
                "prompt": described["prompt"],
                "seed": described["seed"],
                "image": {"bytes": content, "path": f"{name}.{ending}"},
                "metadata": json.dumps(described, ensure_ascii=False, allow_nan=False),
            }
        )

    def commit(self) -> list[Written]:
        """Write all rows."""
        import pyarrow
        from pyarrow import parquet

        image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        schema = pyarrow.schema(
            [
                ("id", pyarrow.string()),
                ("prompt", pyarrow.string()),
                ("seed", pyarrow.int64()),
                ("image", image),
                ("metadata", pyarrow.string()),
            ]
        )
        buffer = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(self.rows, schema=schema), buffer)
        publish_file(self.path, buffer.getvalue())
        return [written(self.path)]

    def abort(self) -> None:
        """Forget the rows."""
        self.rows.clear()


def written(path: Path) -> Written:
    """Describe a file that was published."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Written(f"{path.parent.name}/{path.name}", path.stat().st_size, digest)


def drop(file: Any) -> None:
    """Close and remove a temporary file."""
    try:
        file.close()
    except OSError:
        pass
    finally:
        remove(Path(file.name))
