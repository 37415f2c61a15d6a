"""Read a folder of posed photographs: pictures and one file of cameras.

`cameras.json`: {"frames": [{"file", "width", "height", "fx", "fy", "cx", "cy", "w2c"}, ...]},
OpenCV, world to camera, pixels of the stored size. `transforms.json` (instant-ngp, nerfstudio):
OpenGL camera-to-world poses, with fl_x, fl_y, cx, cy or camera_angle_x.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras

__all__ = ["Capture", "CaptureError", "read_capture", "read_pictures"]

CAMERA_FILES = ("cameras.json", "transforms.json")
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
# Looked at in the header, before anything is unpacked: small files can hold huge pictures.
MOST_PIXELS = 64_000_000


class CaptureError(ValueError):
    """A folder that is no capture."""


@dataclass(frozen=True)
class Capture:
    """Photographs of one size, RGB or RGB and alpha from 0 to 1, their cameras and file names."""

    pictures: Float[Tensor, "v c height width"]
    cameras: Cameras
    names: list[str]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, views: list[int] | slice) -> "Capture":
        chosen = list(range(len(self)))[views] if isinstance(views, slice) else views
        names = [self.names[view] for view in chosen]
        return Capture(self.pictures[chosen], self.cameras[chosen], names)

    def resized(self, width: int, height: int) -> "Capture":
        """Return the capture at a smaller size; pixels are averaged."""
        pictures = torch.nn.functional.interpolate(
            self.pictures, (height, width), mode="bilinear", antialias=True, align_corners=False
        )
        return Capture(pictures.clamp(0, 1), self.cameras.resized(width, height), self.names)


def read_pictures(files: list[Path]) -> list[Image.Image]:
    """Read pictures; raises CaptureError that names the one that cannot be read."""
    pictures = []
    for file in files:
        try:
            picture = Image.open(file)
            if picture.width * picture.height > MOST_PIXELS:
                raise CaptureError(
                    f"{file} has {picture.width} x {picture.height} pixels: at most "
                    f"{MOST_PIXELS:,} are read, shrink it"
                )
            picture.load()
        except CaptureError:
            raise
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise CaptureError(f"{file} cannot be read as a picture: {error}") from None
        pictures.append(picture.convert("RGBA" if has_alpha(picture) else "RGB"))
    return pictures


def has_alpha(picture: Image.Image) -> bool:
    """Say whether a picture has an alpha channel or a transparent colour."""
    return "A" in picture.getbands() or "transparency" in picture.info


def tensor_of(pictures: list[Image.Image]) -> Float[Tensor, "v c height width"]:
    """Stack pictures of one size to values from 0 to 1."""
    stacked = np.stack([np.asarray(picture) for picture in pictures])
    return torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255


def read_capture(
    folder: Path, *, width: int | None = None, views: list[int] | None = None
) -> Capture:
    """Read a capture, at most `width` pixels wide; `views` picks frames by their number.

    Raises CaptureError that says what is missing.
    """
    found = [folder / name for name in CAMERA_FILES if (folder / name).is_file()]
    if not found:
        raise CaptureError(f"{folder} has no {' or '.join(CAMERA_FILES)}: poses are needed")
    try:
        stored = json.loads(found[0].read_text(encoding="utf-8"))
        frames = stored["frames"]
        chosen = frames if views is None else [frames[view] for view in views]
        read = frame_of_opencv if found[0].name == "cameras.json" else frame_of_nerf
        poses = [read(frame, stored) for frame in chosen]
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise CaptureError(f"{found[0]} is not understood: {error!r}") from None
    if not poses:
        raise CaptureError(f"{found[0]} has no frames")
    files = [folder / name for name, _, _, _ in poses]
    for file in files:
        if not file.resolve().is_relative_to(folder.resolve()):
            raise CaptureError(f"{found[0]} names {file.name} outside of the folder")
    pictures = read_pictures([file if file.suffix else file.with_suffix(".png") for file in files])
    if len({(picture.size, picture.mode) for picture in pictures}) > 1:
        raise CaptureError(f"the pictures of {folder} differ in size or channels: make them equal")
    tensors = tensor_of(pictures)
    height, wide = tensors.shape[-2:]
    w2c, K = torch.stack([pose[1] for pose in poses]), torch.stack([pose[2] for pose in poses])
    sizes = torch.tensor([pose[3] or (wide, height) for pose in poses], dtype=torch.float32)
    # Intrinsics are of the size that the file states: bring them to the size that was read.
    factors = torch.tensor([wide, height]) / sizes
    K = K * torch.cat([factors, torch.ones(len(poses), 1)], -1)[..., None]
    capture = Capture(tensors, Cameras(w2c, K, wide, height), [pose[0] for pose in poses])
    if width is None or width >= wide:
        return capture
    return capture.resized(width, max(1, round(height * width / wide)))


Frame = tuple[str, Tensor, Tensor, tuple[int, int] | None]


def frame_of_opencv(frame: dict[str, Any], stored: dict[str, Any]) -> Frame:
    """Read a frame of cameras.json."""
    fx, fy, cx, cy = (float(frame[name]) for name in ("fx", "fy", "cx", "cy"))
    K = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    w2c = torch.tensor(frame["w2c"], dtype=torch.float32).reshape(4, 4)
    return str(frame["file"]), w2c, K, (int(frame["width"]), int(frame["height"]))


def frame_of_nerf(frame: dict[str, Any], stored: dict[str, Any]) -> Frame:
    """Read a frame of transforms.json; values of the frame go before those of the file."""
    values = {**stored, **frame}
    c2w = torch.tensor(frame["transform_matrix"], dtype=torch.float32).reshape(1, 4, 4)
    size = (int(values["w"]), int(values["h"])) if "w" in values and "h" in values else None
    if size is None:
        raise CaptureError("transforms.json must state w and h")
    focal = 0.5 * size[0] / math.tan(values.get("camera_angle_x", 1.0) / 2)
    fx = float(values.get("fl_x", focal))
    fy = float(values.get("fl_y", fx))
    cx, cy = float(values.get("cx", size[0] / 2)), float(values.get("cy", size[1] / 2))
    K = torch.tensor([[[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]]])
    cameras = Cameras.from_c2w(c2w, K, width=size[0], height=size[1], convention="opengl")
    return str(frame["file_path"]), cameras.w2c[0], K[0], size
