"""Pictures on their way from a pipeline to a file: floats, 8-bit arrays, data URIs, PNG.

Pictures are [b, f, 3, height, width] floats; f is 1 for still pictures. Fidelity is measured on
them, before they are rounded to 8 bits.
"""

import base64
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError, features
from torch import Tensor

from skipstep.plugins.errors import Incompatible, PluginError

__all__ = [
    "data_uri",
    "read_metadata",
    "read_pictures",
    "save_png",
    "to_bytes",
    "to_image",
    "to_png",
    "write_whole",
]


def read_pictures(result: Any) -> Float[Tensor, "b f 3 height width"]:
    """Return the pictures of a pipeline's result, made with output_type="np", as floats in [-1, 1].

    Raises Incompatible for pipelines that return something else than pictures or video frames.
    """
    for name in ("images", "frames", "videos"):
        found = result.get(name) if hasattr(result, "get") else getattr(result, name, None)
        if found is not None:
            break
    else:
        raise Incompatible(
            f"the pipeline returned a {type(result).__name__} without images or frames: only "
            "pipelines that make pictures or videos can be compared"
        )
    pictures = torch.from_numpy(
        np.stack([np.asarray(sample, dtype=np.float32) for sample in found])
    )
    if pictures.ndim == 4:
        pictures = pictures[:, None]
    if pictures.ndim != 5 or pictures.shape[-1] != 3:
        raise Incompatible(
            f"the pipeline returned pictures of shape {tuple(pictures.shape)}: RGB pictures "
            "[b, height, width, 3] or videos [b, f, height, width, 3] can be compared"
        )
    return pictures.movedim(-1, 2) * 2 - 1


def to_bytes(pictures: Float[Tensor, "b f 3 height width"]) -> list[NDArray[np.uint8]]:
    """Return the middle frame of each sample as an 8-bit array [height, width, 3]."""
    middle = pictures[:, pictures.shape[1] // 2].nan_to_num(0.0)
    scaled = ((middle + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).movedim(1, -1)
    return [np.ascontiguousarray(picture) for picture in scaled.cpu().numpy()]


def to_image(picture: NDArray[np.uint8], *, largest: int | None = None) -> Image.Image:
    """Return a PIL image, shrunk so that no side is longer than `largest` pixels."""
    image = Image.fromarray(picture)
    if largest is not None and max(image.size) > largest:
        image.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    return image


def data_uri(picture: NDArray[np.uint8], *, largest: int) -> str:
    """Return a picture as a data URI: lossless, unless it has to be shrunk to `largest` pixels."""
    image = to_image(picture, largest=largest)
    buffer = io.BytesIO()
    if features.check("webp"):
        is_whole = image.size == (picture.shape[1], picture.shape[0])
        image.save(buffer, "WEBP", lossless=is_whole, quality=80 if is_whole else 90)
        kind = "webp"
    else:
        image.save(buffer, "PNG", optimize=True)
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def save_png(image: Image.Image, path: Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Save a PNG in one go, with `metadata` as JSON in its text chunk `skipstep`."""
    write_whole(path, to_png(image, metadata))


def to_png(image: Image.Image, metadata: Mapping[str, Any] | None = None, **chunks: str) -> bytes:
    """Return a PNG with `metadata` as JSON in its text chunk `skipstep`; `chunks` are others."""
    texts = PngImagePlugin.PngInfo()
    for name, text in chunks.items():
        texts.add_itxt(name, text)
    if metadata is not None:
        texts.add_itxt("skipstep", json.dumps(metadata, ensure_ascii=False, allow_nan=False))
    buffer = io.BytesIO()
    # Half the time of the default, 6, for one per cent more bytes.
    image.save(buffer, "PNG", pnginfo=texts, compress_level=4)
    return buffer.getvalue()


def read_metadata(path: Path) -> str:
    """Return the JSON in a PNG's text chunk `skipstep`, a WebP's XMP packet or an MP4's comment.

    Raises PluginError for files without one.
    """
    try:
        if path.suffix == ".mp4":
            text = read_comment(path)
        else:
            with Image.open(path) as image:
                text = getattr(image, "text", {}).get("skipstep")
                text = text or image.info.get("xmp", b"").decode() or None
        json.loads(text or "")
    except (UnidentifiedImageError, json.JSONDecodeError, UnicodeDecodeError):
        text = None
    if text is None:
        raise PluginError(
            f"{path} says nothing about how it was made: only files written by skipstep do"
        )
    return json.dumps(json.loads(text), indent=2, ensure_ascii=False)


def read_comment(path: Path) -> str | None:
    """Return the comment of a film."""
    try:
        import av
    except ImportError:
        raise PluginError('MP4 needs PyAV: pip install "skipstep[video]"') from None
    with av.open(path) as container:
        comment: str | None = container.metadata.get("comment")
    return comment


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that nobody ever sees half of it: under a temporary name, then renamed."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        # mkstemp makes files private; the umask decides for everybody else's files.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
