"""Fetch the animated emoji that the video model is trained on.

Sources: Microsoft Fluent emoji, animated (npm `@lobehub/fluent-emoji-anim-1` to `-4` 1.0.0, MIT as
the packages and Microsoft's own repository of the set say), SHA-256 checked; 730 MB of downloads,
of which 14 MB are kept. Clips that hardly move, skin tones and names that emojibase does not know
are left out.
"""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from skipstep.pipelines.reference.captions import normalise
from skipstep.pipelines.reference.data import (
    Pictures,
    fetch_package,
    load_emojibase,
    premultiply,
    store_pictures,
)

__all__ = ["CLIP_PACKAGES", "clip_file", "load_clips", "sample_frames"]

CLIP_PACKAGES = tuple(f"@lobehub/fluent-emoji-anim-{part}@1.0.0" for part in (1, 2, 3, 4))
# Shorter ones are stills; a mean change below this (of 255, between kept frames) is one as well.
FEWEST_FRAMES = 16
LEAST_CHANGE = 0.5


def clip_file(size: int, frames: int) -> str:
    """Return the name of the cache's file of clips."""
    return f"clips-{size}-{frames}.npz"


def load_clips(cache: Path, *, size: int, frames: int) -> Pictures:
    """Return the clips, `pixels` [n, frames, size, size, 4], made once and kept in `cache`."""
    path = cache / clip_file(size, frames)
    if not path.exists():
        kept = dict(render_clips(cache, size, frames))
        store_pictures(path, Pictures(list(kept), np.stack(list(kept.values()))))
    with np.load(path) as stored:
        return Pictures([str(name) for name in stored["names"]], stored["pixels"])


def render_clips(
    cache: Path, size: int, frames: int
) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """Make every clip that moves, with its name."""
    name_of_code = {
        record["hexcode"].lower().replace("-fe0f", ""): normalise(record["label"])
        for record in load_emojibase(cache)
        if record.get("group") not in (None, 9) and "keycap" not in record["label"]
    }
    for package in CLIP_PACKAGES:
        with tarfile.open(fetch_package(package, cache)) as archive:
            for member in archive.getmembers():
                name = name_of_code.get(Path(member.name).stem.replace("-fe0f", ""))
                file = archive.extractfile(member) if name else None
                if name is None or file is None:
                    continue
                clip = sample_frames(Image.open(io.BytesIO(file.read())), size, frames)
                if clip is not None:
                    yield name, clip


def sample_frames(image: Image.Image, size: int, frames: int) -> npt.NDArray[np.uint8] | None:
    """Return `frames` evenly spaced frames of an animation, or None if it does not move."""
    count = getattr(image, "n_frames", 1)
    if count < FEWEST_FRAMES:
        return None
    drawn = []
    for number in np.linspace(0, count - 1, frames).round().astype(int):
        image.seek(int(number))
        # Pillow weights RGBA by alpha itself while resizing: premultiply only afterwards.
        small = image.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
        drawn.append(np.asarray(premultiply(small)))
    clip = np.stack(drawn)
    change = np.abs(np.diff(clip.astype(np.float32), axis=0)).mean()
    return clip if change >= LEAST_CHANGE else None
