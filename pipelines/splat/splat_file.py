"""Read and write .splat files: 32 bytes per splat, colour without harmonics.

A row is position (3 floats), scales (3 floats), red green blue opacity (4 bytes), quaternion
(w, x, y, z) as 128 q + 128 (4 bytes); the largest and most opaque splats first.
"""

from pathlib import Path

import numpy as np
import torch

from skipstep.kernels.gs_harmonics import C0
from skipstep.pipelines.splat.file_checks import FormatError, arrays, checked, whole_rows
from skipstep.pipelines.splat.gaussians import Gaussians

__all__ = ["read_splat", "write_splat"]

ROW = np.dtype([("means", "<f4", 3), ("scales", "<f4", 3), ("rgba", "u1", 4), ("quats", "u1", 4)])


def write_splat(gaussians: Gaussians, path: Path) -> None:
    """Write the splats; harmonics above degree 0 are lost."""
    values = arrays(gaussians)
    order = np.argsort(-values["scales"].prod(1) * values["opacities"], kind="stable")
    rows = np.zeros(len(gaussians), ROW)
    rows["means"], rows["scales"] = values["means"], values["scales"]
    colours = np.concatenate([0.5 + C0 * values["sh"][:, 0], values["opacities"][:, None]], 1)
    rows["rgba"] = np.clip(np.rint(colours * 255), 0, 255)
    rows["quats"] = np.clip(np.rint(values["quats"] * 128 + 128), 0, 255)
    path.write_bytes(rows[order].tobytes())


def read_splat(path: Path) -> Gaussians:
    """Read splats. Raises FormatError when the size is not a number of rows or values are void."""
    count, left = divmod(path.stat().st_size, ROW.itemsize)
    if left:
        raise FormatError(path, f"its size is no multiple of {ROW.itemsize} bytes")
    whole_rows(path, count, ROW.itemsize, 0)
    rows = np.fromfile(path, ROW, count)
    rgba = rows["rgba"].astype(np.float32) / 255
    return checked(
        path,
        Gaussians(
            means=torch.from_numpy(rows["means"].copy()),
            quats=torch.from_numpy((rows["quats"].astype(np.float32) - 128) / 128),
            scales=torch.from_numpy(rows["scales"].copy()),
            opacities=torch.from_numpy(rgba[:, 3].copy()),
            sh=torch.from_numpy((rgba[:, None, :3] - 0.5) / np.float32(C0)),
        ),
    )
