"""The pictures of a session as PNG files that say how they were made, and settings read back.

Files are named by chance, never by a prompt, and lie in one folder of the server's own. The oldest
go when there are too many. A PNG that somebody uploads is looked at, not decoded: its text is
read, its pixels are not.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from skipstep.pipelines.batch.metadata import describe_row, origin_of, parameters
from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.clip_files import FRAMES_PER_SECOND, save_clip
from skipstep.pipelines.generate import read_size
from skipstep.pipelines.pictures import to_bytes, to_image, to_png, write_whole
from skipstep.pipelines.ui.controls import recipe_words
from skipstep.pipelines.ui.figures import describe_pair
from skipstep.pipelines.ui.limits import Limits, check_upload, read_settings
from skipstep.pipelines.ui.studio import Pair, Side, read_json
from skipstep.plugins.errors import PluginError

__all__ = ["Album", "read_picture_settings"]

MOST_FILES = 400


class Album:
    """Writes pictures (PNG) and clips (animated WebP) into one folder and keeps the newest."""

    def __init__(self, folder: Path, most: int = MOST_FILES) -> None:
        self.folder = folder
        self.most = most
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, pair: Pair, pipe: Any) -> tuple[Path, Path]:
        """Write both sides of a pair; return the plain one and the accelerated one."""
        measured = {
            name: value
            for name, value in describe_pair(pair).items()
            if name in ("psnr", "ssim", "feature_distance", "verdict")
        }
        plain = self.write(pair.plain, pair.row, pair.model, pipe, "[]", {})
        return plain, self.write(
            pair.accelerated, pair.row, pair.model, pipe, pair.row.plugins, measured
        )

    def write(
        self,
        side: Side,
        row: Row,
        model: str,
        pipe: Any,
        plugins: str,
        more: Mapping[str, Any],
    ) -> Path:
        """Write one picture or clip."""
        described = describe_row(
            row if side.steps is None else replace(row, steps=side.steps),
            origin_of(pipe, model),
            batch_size=1,
            fraction=1.0 if side.report is None else side.report.fraction,
            plugins=plugins,
        )
        told = described | dict(more)
        name = secrets.token_hex(8)
        frames = to_bytes(side.picture.transpose(0, 1))
        if len(frames) == 1:
            path = self.folder / f"{name}.png"
            image = to_image(frames[0])
            write_whole(path, to_png(image, told, parameters=parameters(described)))
        else:
            path = self.folder / f"{name}.webp"
            told |= {"num_frames": len(frames)}
            save_clip(np.stack(frames), path, told, rate=FRAMES_PER_SECOND)
        self.clear_out()
        return path

    def clear_out(self) -> None:
        """Remove the oldest files beyond the most that are kept."""
        files = sorted(self.folder.glob("[!.]*"), key=lambda path: path.stat().st_mtime_ns)
        for path in files[: max(0, len(files) - self.most)]:
            path.unlink(missing_ok=True)


def read_picture_settings(path: object, limits: Limits) -> dict[str, Any]:
    """Return the settings in a PNG that skipstep wrote, as the page's fields.

    Raises PluginError for every other file.
    """
    file = check_upload(path, limits)
    try:
        with Image.open(file, formats=["PNG"]) as image:
            text = image.info.get("skipstep")
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise PluginError(
            "this is no PNG, or a damaged one: give one written by skipstep"
        ) from None
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PluginError(
            "this PNG says nothing about how it was made: only those written by skipstep do, as "
            "long as no other program has saved them again"
        )
    return fields_of(found, limits)


def fields_of(found: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    """Check what a file says as strictly as what a person types."""
    plugins = found.get("plugins") or []
    if not isinstance(plugins, list):
        raise PluginError("this PNG's recipe cannot be read: it is no list of plugins")
    size = None
    if "width" in found and "height" in found:
        size = f"{found['width']}x{found['height']}"
        read_size(size)
    row = read_settings(
        {
            "prompt": found.get("prompt"),
            "negative": found.get("negative_prompt"),
            "seed": found.get("seed"),
            "steps": found.get("num_inference_steps"),
            "guidance": found.get("guidance_scale"),
            "size": size,
            "plugins": plugins,
        },
        limits,
    )
    model = found.get("model")
    return {
        "prompt": row.prompt,
        "negative": row.negative or "",
        "seed": row.seed,
        "steps": row.steps,
        "guidance": row.guidance,
        "size": size or "",
        "recipe": recipe_words(read_json(row.plugins)),
        "model": model if isinstance(model, str) else "",
    }
