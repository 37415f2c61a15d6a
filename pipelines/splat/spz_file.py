"""Read and write .spz files (Niantic, version 3; version 2 is read too): about a tenth of a .ply.

gzip of a 16-byte header (magic, version, count, degree, fractional bits, flags, 0) and one stream
per attribute:
  positions 3 x 24 bit fixed point   alphas 8 bit   colours 8 bit: 255 (0.15 f + 0.5)
  scales 8 bit: 16 (ln s + 10)       harmonics 8 bit: 128 f + 128
  rotations 32 bit: the index of the largest component of (x, y, z, w), then sign and 9 bits of
  each other one over sqrt(1/2)
The authors' writer rounds harmonics to multiples of 8 and 16, for smaller files; ours keeps all 8
bits, which is worth 11 dB on a scene whose colours change much with the direction.
The world of the format is y-up (x right, y up, z back), ours y-down: y and z change their sign.
"""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skipstep.pipelines.splat.file_checks import FormatError, arrays, checked
from skipstep.pipelines.splat.gaussians import Gaussians

__all__ = ["read_spz", "write_spz"]

MAGIC, VERSION, FRACTIONAL_BITS = 0x5053474E, 3, 12
HEADER = struct.Struct("<IIIBBBB")
COEFFICIENTS = (1, 4, 9, 16)
# How each harmonic changes when y and z change their sign.
FLIPS = np.array([1, -1, -1, 1, -1, 1, 1, -1, 1, -1, 1, -1, -1, 1, -1, 1], np.float32)
# No gzip stream grows by more when it is unpacked.
MOST_GROWTH = 1040
Bytes = np.ndarray[Any, Any]


def write_spz(gaussians: Gaussians, path: Path) -> None:
    """Write the splats; positions are kept to 1/4096, so scale tiny or huge scenes first."""
    values = arrays(gaussians)
    flip = np.array([1, -1, -1], np.float32)
    fixed = np.rint(values["means"] * flip * (1 << FRACTIONAL_BITS))
    if np.abs(fixed).max(initial=0) >= 1 << 23:
        raise ValueError(
            "spz keeps positions up to 2048 from the origin: bring the scene closer or save a .ply"
        )
    degree = COEFFICIENTS.index(values["sh"].shape[1])
    turned = values["sh"][:, 1:] * FLIPS[1 : values["sh"].shape[1], None]
    streams = [
        fixed.astype("<i4")[..., None].view("u1")[..., :3],
        eight_bits(values["opacities"] * 255),
        eight_bits((values["sh"][:, 0] * 0.15 + 0.5) * 255),
        eight_bits((np.log(values["scales"]) + 10) * 16),
        smallest_three(values["quats"]),
        eight_bits(turned * 128 + 128),
    ]
    header = HEADER.pack(MAGIC, VERSION, len(gaussians), degree, FRACTIONAL_BITS, 0, 0)
    # A fixed gzip header: equal scenes give equal files.
    packer = zlib.compressobj(9, wbits=31)
    body = header + b"".join(stream.tobytes() for stream in streams)
    path.write_bytes(packer.compress(body) + packer.flush())


def eight_bits(values: Bytes) -> Bytes:
    """Round to bytes."""
    rounded: Bytes = np.clip(np.rint(values), 0, 255).astype("u1")
    return rounded


def smallest_three(quats: Bytes) -> Bytes:
    """Pack unit quaternions (w, x, y, z) of our world into 32 bits of theirs."""
    q = quats[:, [1, 2, 3, 0]] * np.array([1, -1, -1, 1], np.float32)
    largest = np.abs(q).argmax(1)
    q = q * np.where(np.take_along_axis(q, largest[:, None], 1) < 0, -1, 1)
    packed = largest.astype(np.uint32)
    for component in range(4):
        amount = np.rint(511 * np.minimum(np.abs(q[:, component]) * np.sqrt(2.0), 1)).astype(
            np.uint32
        )
        bits = ((q[:, component] < 0).astype(np.uint32) << 9) | amount
        packed = np.where(largest == component, packed, (packed << 10) | bits).astype(np.uint32)
    little: Bytes = packed.astype("<u4")
    return little


def unpacked_three(packed: Bytes) -> Bytes:
    """Undo `smallest_three`."""
    largest, q = packed >> 30, np.zeros((len(packed), 4), np.float32)
    left = packed.copy()
    for component in (3, 2, 1, 0):
        other = largest != component
        amount = (left & 511).astype(np.float32) / 511 * np.float32(np.sqrt(0.5))
        signed = np.where((left >> 9) & 1, -amount, amount)
        q[:, component] = np.where(other, signed, 0)
        left = np.where(other, left >> 10, left)
    rest = np.sqrt(np.maximum(0, 1 - (q * q).sum(1)))
    np.put_along_axis(q, largest[:, None].astype(np.int64), rest[:, None], 1)
    unpacked: Bytes = (q * np.array([1, -1, -1, 1], np.float32))[:, [3, 0, 1, 2]]
    return unpacked


def unpacked_first_three(packed: Bytes) -> Bytes:
    """Unpack the rotations of version 2: x, y, z as bytes, w from the unit length."""
    q = packed.astype(np.float32) / 127.5 - 1
    w = np.sqrt(np.maximum(0, 1 - (q * q).sum(1, keepdims=True)))
    return np.concatenate([w, q * np.array([1, -1, -1], np.float32)], 1)


def unzip(path: Path) -> tuple[tuple[int, ...], bytes]:
    """Return header and body; no more is unpacked than the header's count needs."""
    packed = path.read_bytes()
    unpacker = zlib.decompressobj(wbits=31)
    try:
        start = unpacker.decompress(packed, HEADER.size)
        if len(start) < HEADER.size:
            raise FormatError(path, "it ends within its header")
        header = HEADER.unpack(start)
        magic, version, count, degree = header[:4]
        if magic != MAGIC or version not in (2, 3):
            raise FormatError(path, "no spz header of version 2 or 3")
        if degree > 3:
            raise FormatError(path, f"harmonics of degree {degree}: 3 is the most")
        size = count * bytes_per_splat(version, degree)
        if size > len(packed) * MOST_GROWTH:
            raise FormatError(path, f"{count} splats do not fit into its {len(packed)} bytes")
        body = unpacker.decompress(unpacker.unconsumed_tail, size) if size else b""
    except zlib.error as error:
        raise FormatError(path, f"its gzip stream is damaged ({error})") from None
    if len(body) < size:
        raise FormatError(path, f"its stream ends before {count} splats are there")
    return header, body


def bytes_per_splat(version: int, degree: int) -> int:
    """Return the bytes of one splat over all streams."""
    return 9 + 1 + 3 + 3 + (4 if version == 3 else 3) + 3 * (COEFFICIENTS[degree] - 1)


def read_spz(path: Path) -> Gaussians:
    """Read splats. Raises FormatError that says what is wrong with the file."""
    (_, version, count, degree, fractional_bits, _, _), body = unzip(path)
    data, at = np.frombuffer(body, "u1"), 0

    def stream(width: int) -> Bytes:
        nonlocal at
        part = data[at : at + count * width].reshape(count, width)
        at += count * width
        return part

    fixed = np.zeros((count, 3, 4), "u1")
    fixed[..., 1:] = stream(9).reshape(count, 3, 3)
    # The 24 bits sit in the upper bytes: shifting down again brings the sign along.
    means = (fixed.view("<i4")[..., 0] >> 8).astype(np.float32) / np.float32(2.0**fractional_bits)
    opacities = stream(1)[:, 0].astype(np.float32) / 255
    base = (stream(3).astype(np.float32) / 255 - 0.5) / np.float32(0.15)
    scales = np.exp(stream(3).astype(np.float32) / 16 - 10)
    quats = (
        unpacked_three(stream(4).copy().view("<u4")[:, 0])
        if version == 3
        else unpacked_first_three(stream(3))
    )
    coefficients = COEFFICIENTS[degree]
    higher = (stream(3 * (coefficients - 1)).astype(np.float32) - 128) / 128
    higher = higher.reshape(count, coefficients - 1, 3) * FLIPS[1:coefficients, None]
    return checked(
        path,
        Gaussians(
            means=torch.from_numpy(means * np.array([1, -1, -1], np.float32)),
            quats=torch.from_numpy(np.ascontiguousarray(quats, np.float32)),
            scales=torch.from_numpy(scales),
            opacities=torch.from_numpy(opacities),
            sh=torch.from_numpy(np.concatenate([base[:, None], higher], 1).astype(np.float32)),
        ),
    )
