"""Photographs to 3D Gaussians: each row is a folder of pictures of one object.

Rows are reconstructed one by one; what `skipstep reconstruct` does for one object is done here for
a thousand, and survives being killed. A row's files are its .ply, its .spz and a .png to look at.
A row's folder is below that of the file of rows: what lies elsewhere is not read.
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from skipstep.pipelines.batch.making import Made
from skipstep.pipelines.batch.metadata import origin_of
from skipstep.pipelines.batch.rows import Row, RowError
from skipstep.pipelines.pictures import to_png
from skipstep.pipelines.splat.command import read_views
from skipstep.pipelines.splat.gaussians import Gaussians

__all__ = ["Rebuilding", "load_pipeline"]

MOST_VIEWS = 16
PREVIEW = 192
BACKGROUND = "white"


def load_pipeline() -> Any:
    """Return the shipped reconstruction pipeline."""
    from skipstep.pipelines.splat.pipeline import (
        GaussianReconstructionPipeline,
        load_reconstructor,
    )

    return GaussianReconstructionPipeline(load_reconstructor())


class Rebuilding:
    """Reconstructs rows with one pipeline; it takes no plugins.

    Args:
        base: the folder that rows' folders are below.
        model: what to note as the model.
        metadata: whether the preview says how it was made.
    """

    def __init__(self, pipe: Any, base: Path, *, model: str = "", metadata: bool = True) -> None:
        self.pipe = pipe
        self.base = base.resolve()
        self.origin = origin_of(pipe, model)
        self.metadata = metadata

    def use(self, plugins: str) -> None:
        """Do nothing: there are no plugins for this pipeline."""

    def close(self) -> None:
        """Do nothing."""

    def make(self, rows: Sequence[Row], *, plain: bool = False) -> list[Made]:
        """Reconstruct rows, one after the other."""
        return [self.make_one(row) for row in rows]

    def make_one(self, row: Row) -> Made:
        """Reconstruct one object."""
        folder = self.folder_of(row)
        started = time.monotonic()
        capture = read_views(folder, MOST_VIEWS, None)
        result = self.pipe(
            folder if capture is None else capture.pictures,
            None if capture is None else capture.cameras,
            background=BACKGROUND,
            refine_steps=row.steps,
            seed=row.seed % 2**31,
        )
        seconds = time.monotonic() - started
        gaussians = result.gaussians
        if not all(bool(torch.isfinite(part).all()) for part in (gaussians.means, gaussians.sh)):
            return Made(row, "nan", error="the Gaussians hold values that are not numbers")
        if len(gaussians) == 0:
            return Made(row, "black", error="no Gaussian can be seen")
        described = {
            "version": 1,
            "id": row.id,
            "photos": row.photos,
            "seed": row.seed,
            "refine_steps": row.steps,
            "gaussians": len(gaussians),
            **self.origin,
        }
        return Made(
            row,
            "ok",
            files_of(gaussians, described if self.metadata else None),
            described,
            seconds=seconds,
            figures={"gaussians": float(len(gaussians))},
        )

    def folder_of(self, row: Row) -> Path:
        """Return a row's folder.

        Raises RowError for one that is not there, or that a link leads out of the base.
        """
        folder = (self.base / (row.photos or "")).resolve()
        if not folder.is_relative_to(self.base):
            raise RowError(
                f"photos={row.photos!r} leads out of {self.base}: links are not followed"
            )
        if not folder.is_dir():
            raise RowError(f"photos={row.photos!r}: there is no such folder in {self.base}")
        return folder


def files_of(gaussians: Gaussians, described: dict[str, Any] | None) -> dict[str, bytes]:
    """Return the files of a scene by their ending."""
    with tempfile.TemporaryDirectory() as folder:
        files = {
            ending: gaussians.save(Path(folder) / f"scene.{ending}").read_bytes()
            for ending in ("ply", "spz")
        }
    preview = gaussians.orbit(1, width=PREVIEW).pictures()[0]
    return files | {"png": to_png(preview, described)}
