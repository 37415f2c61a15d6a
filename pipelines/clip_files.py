"""Clips on their way to a file: animated WebP (lossless, Pillow), or MP4 (H.264, PyAV).

Both say how they were made, as PNGs do: WebP in its XMP packet, MP4 in the comment of the
container.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skipstep.pipelines.pictures import write_whole
from skipstep.plugins.errors import PluginError

__all__ = ["CLIP_FORMATS", "FRAMES_PER_SECOND", "clip_bytes", "save_clip"]

CLIP_FORMATS = ("webp", "mp4")
FRAMES_PER_SECOND = 8


def save_clip(
    frames: NDArray[np.uint8], path: Path, described: Mapping[str, Any], *, rate: int
) -> None:
    """Write frames [f, height, width, 3] to `path`, whose suffix says in which format.

    Args:
        described: how the clip was made, stored in the file as JSON.
        rate: frames per second.

    Raises PluginError for another suffix, and where MP4 lacks PyAV or even sides.
    """
    write_whole(path, clip_bytes(frames, path.suffix[1:], described, rate=rate))


def clip_bytes(
    frames: NDArray[np.uint8], kind: str, described: Mapping[str, Any], *, rate: int
) -> bytes:
    """Return the file of a clip, of the kind "webp" or "mp4"; see `save_clip`."""
    text = json.dumps(described, ensure_ascii=False, allow_nan=False)
    if kind == "webp":
        return to_webp(frames, text, rate)
    if kind == "mp4":
        return to_mp4(frames, text, rate)
    given = f".{kind}" if kind else "no suffix"
    raise PluginError(f"clips are written as {' or '.join(CLIP_FORMATS)}, not as {given}")


def to_webp(frames: NDArray[np.uint8], text: str, rate: int) -> bytes:
    """Return an endless lossless animation."""
    first, *others = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=round(1000 / rate),
        loop=0,
        lossless=True,
        xmp=text.encode(),
    )
    return buffer.getvalue()


def to_mp4(frames: NDArray[np.uint8], text: str, rate: int) -> bytes:
    """Return a film that every browser plays."""
    try:
        import av
    except ImportError:
        raise PluginError('MP4 needs PyAV: pip install "skipstep[video]", or write webp') from None
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise PluginError(f"MP4 needs even sides, not {width} x {height}: write webp")
    buffer = io.BytesIO()
    # Without the option the muxer drops every tag it does not know.
    with av.open(buffer, "w", format="mp4", options={"movflags": "use_metadata_tags"}) as container:
        container.metadata["comment"] = text
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "12"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()
