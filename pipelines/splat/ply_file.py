"""Read and write .ply files of Gaussians in the layout of Kerbl et al. 2023 (arXiv:2308.04079).

One row of little-endian floats per splat: x y z nx ny nz, f_dc_0..2, f_rest_* channel by channel
(all red ones first), opacity as a logit, scale_0..2 as logarithms, rot_0..3 as (w, x, y, z).
Normals and f_rest may be missing when read; further columns are skipped.
"""

from pathlib import Path

import numpy as np
import torch

from skipstep.pipelines.splat.file_checks import FormatError, arrays, checked, whole_rows
from skipstep.pipelines.splat.gaussians import Gaussians

__all__ = ["read_ply", "write_ply"]

HEADER_LIMIT = 1 << 16
TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "<i2"),
    **dict.fromkeys(("ushort", "uint16"), "<u2"),
    **dict.fromkeys(("int", "int32"), "<i4"),
    **dict.fromkeys(("uint", "uint32"), "<u4"),
    **dict.fromkeys(("float", "float32"), "<f4"),
    **dict.fromkeys(("double", "float64"), "<f8"),
}
# A logit of 0 or 1 is infinite: keep a hair away from both.
EDGE = 1e-7


def write_ply(gaussians: Gaussians, path: Path) -> None:
    """Write the splats; float32 keeps a re-render beyond 100 dB."""
    values = arrays(gaussians)
    rest = values["sh"][:, 1:].transpose(0, 2, 1).reshape(len(gaussians), -1)
    opacity = np.clip(values["opacities"].astype(np.float64), EDGE, 1 - EDGE)
    columns = [
        values["means"],
        np.zeros_like(values["means"]),
        values["sh"][:, 0],
        rest,
        np.log(opacity / (1 - opacity))[:, None],
        np.log(values["scales"]),
        values["quats"],
    ]
    names = ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"]
    names += [f"f_rest_{k}" for k in range(rest.shape[1])]
    names += ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(gaussians)}"]
    header += [f"property float {name}" for name in names] + ["end_header\n"]
    rows = np.concatenate(columns, 1).astype("<f4")
    path.write_bytes("\n".join(header).encode() + rows.tobytes())


def read_header(start: bytes, path: Path) -> tuple[int, np.dtype, int]:
    """Return the number of splats, the type of a row, and where the rows begin."""
    end = start.find(b"end_header\n")
    if not start.startswith(b"ply") or end < 0:
        raise FormatError(path, "no PLY header in its first 64 KiB")
    words = [line.split() for line in start[:end].decode("ascii", "replace").splitlines()]
    formats = [line[1] for line in words if line[:1] == ["format"] and len(line) > 1]
    if formats != ["binary_little_endian"]:
        raise FormatError(path, f"format {formats} is not read: save as binary_little_endian")
    elements = [line for line in words if line[:1] == ["element"]]
    if len(elements) != 1 or elements[0][1:2] != ["vertex"] or len(elements[0]) != 3:
        raise FormatError(path, "one element, vertex, is expected")
    if not elements[0][2].isdigit() or len(elements[0][2]) > 12:
        raise FormatError(path, f"{elements[0][2][:20]!r} is no number of splats")
    columns = []
    for line in words:
        if line[:1] == ["property"]:
            if len(line) != 3 or line[1] not in TYPES:
                raise FormatError(path, f"property {' '.join(line[1:])[:40]!r} is not a number")
            columns.append((line[2], TYPES[line[1]]))
    names = [name for name, _ in columns]
    if len(set(names)) != len(names):
        raise FormatError(path, "two properties have one name")
    return int(elements[0][2]), np.dtype(columns), end + len(b"end_header\n")


def read_ply(path: Path) -> Gaussians:
    """Read splats. Raises FormatError that says what is wrong with the file."""
    with path.open("rb") as file:
        count, row, begin = read_header(file.read(HEADER_LIMIT), path)
        whole_rows(path, count, row.itemsize, begin)
        file.seek(begin)
        rows = np.frombuffer(file.read(count * row.itemsize), row, count)
    names = set(row.names or ())
    rest = sorted(
        (name for name in names if name.startswith("f_rest_")), key=lambda name: name[7:].zfill(4)
    )
    if len(rest) not in (0, 9, 24, 45) or rest != [f"f_rest_{k}" for k in range(len(rest))]:
        raise FormatError(path, f"{len(rest)} columns f_rest: 0, 9, 24 or 45 are allowed")

    def stack(*wanted: str) -> np.ndarray:
        if missing := [name for name in wanted if name not in names]:
            raise FormatError(path, f"no property {missing[0]!r}: is it a file of Gaussians?")
        if not wanted:
            return np.zeros((count, 0), np.float32)
        return np.stack([rows[name].astype(np.float32) for name in wanted], -1)

    base = stack("f_dc_0", "f_dc_1", "f_dc_2")[:, None]
    higher = stack(*rest).reshape(count, 3, -1).transpose(0, 2, 1)
    with np.errstate(over="ignore"):
        scales = np.exp(stack("scale_0", "scale_1", "scale_2"))
        opacities = 1 / (1 + np.exp(-stack("opacity")[:, 0]))
    return checked(
        path,
        Gaussians(
            means=torch.from_numpy(stack("x", "y", "z")),
            quats=torch.from_numpy(stack("rot_0", "rot_1", "rot_2", "rot_3")),
            scales=torch.from_numpy(scales),
            opacities=torch.from_numpy(opacities),
            sh=torch.from_numpy(np.ascontiguousarray(np.concatenate([base, higher], 1))),
        ),
    )
