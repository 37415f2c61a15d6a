"""Folders of what is saved to be downloaded: named by chance, the oldest leaving."""

import secrets
import shutil
from pathlib import Path

__all__ = ["new_report"]

MOST_REPORTS = 20


def new_report(reports: Path) -> Path:
    """Make a folder inside `reports` and return it; the oldest beyond the most go."""
    folder = reports / secrets.token_hex(8)
    folder.mkdir(parents=True)
    kept = sorted(reports.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for old in kept[: max(0, len(kept) - MOST_REPORTS)]:
        shutil.rmtree(old, ignore_errors=True)
    return folder
