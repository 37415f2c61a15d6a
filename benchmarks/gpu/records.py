"""Lines of results: what was measured, where, with what; one JSON object per line."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
DRY_RUN = "CPU, dry run"


@dataclass(frozen=True)
class Record:
    """One measurement: `values` hold its numbers, or `error` why there is none.

    `facts` are the device, the versions of torch and triton, and the commit.
    """

    slice: str
    name: str
    facts: Mapping[str, str]
    values: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


def describe(device: torch.device) -> dict[str, str]:
    """Return the device, the versions and the commit that a record carries."""
    from importlib.metadata import version

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else DRY_RUN
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    git = done.stdout.strip() or "unknown"
    return {"device": name, "torch": torch.__version__, "triton": version("triton"), "git": git}


def append(path: Path, record: Record) -> None:
    """Write one line at once, so that an end in the middle loses nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")


def read(folder: Path) -> Iterator[Record]:
    """Read every line of every file; a line cut short by a stopped run is passed over."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield Record(**json.loads(line))
            except json.JSONDecodeError:
                continue


def measured(folder: Path, slice_: str) -> dict[str, Record]:
    """Return the last record without an error of each name of a slice."""
    found = {}
    for record in read(folder):
        if record.slice == slice_ and record.error is None:
            found[record.name] = record
    return found
