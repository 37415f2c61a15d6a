"""Save and load scenes by the ending of the file's name."""

from pathlib import Path
from typing import Any

from skipstep.pipelines.splat.file_checks import FormatError
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.ply_file import read_ply, write_ply
from skipstep.pipelines.splat.splat_file import read_splat, write_splat
from skipstep.pipelines.splat.spz_file import read_spz, write_spz
from skipstep.pipelines.splat.viewer_page import write_html

__all__ = ["FormatError", "load", "save"]

WRITERS = {".ply": write_ply, ".splat": write_splat, ".spz": write_spz, ".html": write_html}
READERS = {".ply": read_ply, ".splat": read_splat, ".spz": read_spz}


def save(gaussians: Gaussians, path: str | Path, **options: Any) -> Path:
    """Write a scene and return the path; `options` are those of `write_html`.

    No file format knows surfels: they are written as thin 3D Gaussians (`Gaussians.solid`).
    """
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path.name!r}: the ending must be one of {', '.join(WRITERS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.suffix.lower()](gaussians.solid(), path, **options)
    return path


def load(path: str | Path) -> Gaussians:
    """Read a scene. Raises FormatError, a ValueError, for a file that is damaged or another."""
    path = Path(path)
    if path.suffix.lower() not in READERS:
        raise ValueError(f"{path.name!r}: the ending must be one of {', '.join(READERS)}")
    return READERS[path.suffix.lower()](path)
