"""Manifests: a shard is done when its manifest is there, and not before.

job/manifests/{shard}.json is one line of JSON and the line's sha256. It is written last, after the
shard's pictures have their names. It says of each row what came of it, and of each file how long it
is and what its hash is. A manifest that is torn, or belongs to another plan, is moved to
job/corrupt and its shard is made again.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from skipstep.pipelines.batch.durable import publish_file

__all__ = [
    "Manifest",
    "Outcome",
    "Written",
    "is_there",
    "load",
    "save",
    "set_aside",
    "why_unusable",
]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one row: "ok", or why there is no picture (nan, black, oom, error, crash,
    timeout).

    `batch_size` is how many rows its pipeline call really had; `fraction` the share of block
    computations executed in that call; `sha256` that of the row's file or member, or of all of
    theirs where it has several; `figures` what was measured.
    """

    id: str
    line: int
    seed: int
    status: str
    batch_size: int = 1
    seconds: float = 0.0
    fraction: float = 1.0
    without_plugins: bool = False
    sha256: str | None = None
    error: str | None = None
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Written:
    """A file of a shard: where it is below the output folder, its length and its hash."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What one shard holds; `key` is its plan's."""

    shard: int
    key: str
    rows: list[Outcome]
    files: list[Written]
    starts: int = 1
    seconds: float = 0.0
    peak_bytes: int | None = None
    device: str = ""


READER = TypeAdapter(Manifest)


def file_of(folder: Path, shard: int) -> Path:
    """Return where the manifest of a shard is."""
    return folder / "manifests" / f"{shard:06d}.json"


def is_there(folder: Path, shard: int) -> bool:
    """Say whether a shard has a manifest; `load` says whether it is sound."""
    return file_of(folder, shard).exists()


def save(folder: Path, manifest: Manifest) -> None:
    """Publish a manifest: from now on the shard is done."""
    line = json.dumps(asdict(manifest), allow_nan=False, separators=(",", ":")).encode("ascii")
    digest = hashlib.sha256(line).hexdigest().encode("ascii")
    publish_file(file_of(folder, manifest.shard), line + b"\n" + digest + b"\n")


def load(folder: Path, shard: int, key: str) -> Manifest | None:
    """Read a manifest, or return None if there is none; one that is not sound is moved aside."""
    try:
        content = file_of(folder, shard).read_bytes()
    except FileNotFoundError:
        return None
    line = content.partition(b"\n")[0]
    whole = line + b"\n" + hashlib.sha256(line).hexdigest().encode("ascii") + b"\n"
    try:
        if content != whole:
            raise ValueError("torn")
        manifest = READER.validate_json(line)
    except (ValidationError, ValueError):
        set_aside(folder, shard)
        return None
    if manifest.key != key or manifest.shard != shard:
        set_aside(folder, shard)
        return None
    return manifest


def set_aside(folder: Path, shard: int) -> None:
    """Move a manifest to the corrupt ones, where somebody can look at it."""
    corrupt = folder / "corrupt"
    corrupt.mkdir(exist_ok=True)
    number = 1
    while (target := corrupt / f"{shard:06d}-{number}.json").exists():
        number += 1
    # Another worker may have been faster.
    with contextlib.suppress(FileNotFoundError):
        os.rename(file_of(folder, shard), target)


def why_unusable(output: Path, files: Sequence[Written], *, read: bool = False) -> str | None:
    """Return what is wrong with the files of a manifest, or None.

    Args:
        output: the folder that the paths begin at.
        files: as noted in the manifest.
        read: compare hashes too, which reads everything.
    """
    for file in files:
        path = output / file.path
        try:
            size = path.stat().st_size
            if size != file.bytes:
                return f"{file.path} has {size} bytes instead of {file.bytes}"
            if read:
                with path.open("rb") as opened:
                    if hashlib.file_digest(opened, "sha256").hexdigest() != file.sha256:
                        return f"{file.path} was changed"
        except FileNotFoundError:
            return f"{file.path} is gone"
    return None
