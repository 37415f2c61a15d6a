"""Squeeze an object into a few hundred bytes per view: the file holds what a generator starts from.

After Squeeze3D (Dagli et al. 2025, arXiv:2506.07932): a frozen generator G knows what objects look
like, so a file need not say it. Their small networks map an encoder's latent to a short code and
that to a latent of G:
  code = F_E(E(x)),   x' = G(F_D(code))
Here G is a shipped reconstructor. All it says is a function of its pictures at the size of its
splat maps, 32 x 32 with alpha, and of the cameras: these are its latent. E takes the pictures, or
renders a scene from K sides. F_E carries the colours beyond the silhouette, so that no edge is left
there, turns them to brightness and two differences, and takes cosine transforms of 8 x 8 pixels,
rounded to multiples of a step (one and a half steps for the differences), lowest frequencies of all
blocks first, deflated; F_D is its inverse.

Differs from the authors' code: F is an analytic transform where theirs is learnt, so nothing is
trained and the code has no fixed length; G decodes pictures, not noise. It keeps what G can say:
a scene that was refined, or that G did not make, comes back as G would have made it.
"""

import math
import struct
import zlib
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.file_checks import FormatError
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.objects import FOV

__all__ = ["read_squeezed", "seen_from", "write_squeezed"]

MAGIC, VERSION, SIDE = b"SKSQ", 1, 8
HEADER = struct.Struct("<4sBBHHf")
# Of a view: w2c without its last row, fx, fy, cx, cy.
VIEW = struct.Struct("<16f")
MOST_VIEWS, MOST_SIZE = 16, 256
STRIDE = 2
# Alpha below which a colour says nothing.
LEAST = 0.05


def cosines() -> Float[Tensor, "8 8"]:
    """Return the orthonormal cosine transform of 8 values."""
    n = torch.arange(SIDE, dtype=torch.float32)
    rows = torch.cos(math.pi / SIDE * (n + 0.5) * n[:, None]) * (2 / SIDE) ** 0.5
    return torch.cat([rows[:1] / 2**0.5, rows[1:]])


def frequencies() -> Int[Tensor, " 64"]:
    """Return the order of the coefficients (i, j) by i + j."""
    return (torch.arange(SIDE)[:, None] + torch.arange(SIDE)).flatten().argsort(stable=True)


def opponents() -> Float[Tensor, "3 3"]:
    """Return the orthonormal map of red, green, blue to brightness and two differences."""
    rows = torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]])
    return torch.nn.functional.normalize(rows, dim=-1)


def steps_of(step: float) -> Float[Tensor, "4 1 1 1 1"]:
    """Return the step of each channel."""
    return step * torch.tensor([1.0, 1.5, 1.5, 1.0])[:, None, None, None, None]


def carried(
    rgb: Float[Tensor, "v 3 height width"], alpha: Float[Tensor, "v 1 height width"]
) -> Float[Tensor, "v 3 height width"]:
    """Return colours (times alpha) over alpha; where nothing is, those of ever wider blurs."""
    values = torch.cat([rgb, alpha], 1)
    for width in (3, 7, 15, 31, 63):
        blurred = torch.nn.functional.avg_pool2d(
            torch.cat([rgb, alpha], 1), width, 1, width // 2, count_include_pad=False
        )
        values = torch.where(values[:, 3:] < LEAST, blurred, values)
    return values[:, :3] / values[:, 3:].clamp_min(1e-4)


def write_squeezed(
    path: Path,
    pictures: Float[Tensor, "v c height width"],
    cameras: Cameras,
    *,
    step: float = 0.15,
    size: int = 32,
) -> Path:
    """Write pictures (straight colours and alpha, 0 to 1) and cameras as the code of an object.

    A larger `step` is a smaller file. `size` is that of the reconstructor's splat maps.

    Raises ValueError for pictures that are not such, and for sizes that no reconstructor has.
    """
    v = len(pictures)
    if pictures.shape[1] != 4 or v != len(cameras) or not 2 <= v <= MOST_VIEWS:
        raise ValueError(
            f"{v} pictures of {pictures.shape[1]} channels and {len(cameras)} cameras: give 2 to "
            f"{MOST_VIEWS} pictures with alpha and a camera for each"
        )
    if size % SIDE or not SIDE <= size <= MOST_SIZE or not step > 0:
        raise ValueError(
            f"size={size}, step={step}: the size is a multiple of {SIDE} up to {MOST_SIZE}, the "
            "step positive"
        )
    alpha = pictures[:, 3:]
    small = torch.nn.functional.interpolate(
        torch.cat([pictures[:, :3] * alpha, alpha], 1), (size, size), mode="area"
    )
    colours = torch.einsum("ij,vjhw->vihw", opponents(), carried(small[:, :3], small[:, 3:]))
    latent = torch.cat([colours, small[:, 3:]], 1)
    small_cameras = cameras.resized(size, size)
    blocks = size // SIDE
    tiles = latent.reshape(v, 4, blocks, SIDE, blocks, SIDE).permute(0, 1, 2, 4, 3, 5)
    C = cosines()
    levels = torch.round(C @ tiles @ C.T / steps_of(step)).to(torch.int16)
    by_frequency = levels.flatten(-2)[..., frequencies()].permute(4, 1, 0, 2, 3).contiguous()
    stream = by_frequency.numpy().tobytes()
    packed = zlib.compress(stream[::2] + stream[1::2], 9)
    poses = torch.cat([small_cameras.w2c[:, :3].flatten(1), intrinsics(small_cameras.K)], 1)
    body = b"".join(VIEW.pack(*row) for row in poses.tolist())
    path.write_bytes(HEADER.pack(MAGIC, VERSION, v, size, size, step) + body + packed)
    return path


def intrinsics(K: Float[Tensor, "v 3 3"]) -> Float[Tensor, "v 4"]:
    """Return fx, fy, cx, cy."""
    return torch.stack([K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2]], -1)


def read_squeezed(path: Path) -> tuple[Float[Tensor, "v 4 height width"], Cameras]:
    """Return the pictures and cameras that a reconstruction pipeline makes the object of again.

    Pictures are twice the size of the maps, as the reconstructor takes them.

    Raises FormatError that says what is wrong with the file.
    """
    data = path.read_bytes()
    if len(data) < HEADER.size:
        raise FormatError(path, "it ends within its header")
    magic, version, v, height, width, step = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION:
        raise FormatError(path, f"no squeezed object of version {VERSION}")
    sizes = (height, width)
    if not 2 <= v <= MOST_VIEWS or any(s % SIDE or not SIDE <= s <= MOST_SIZE for s in sizes):
        raise FormatError(path, f"{v} views of {width} x {height} are not allowed")
    begin = HEADER.size + v * VIEW.size
    if begin > len(data):
        raise FormatError(path, f"it ends within its {v} cameras")
    count = v * 4 * height * width
    try:
        unpacker = zlib.decompressobj()
        stream = unpacker.decompress(data[begin:], 2 * count)
    except zlib.error as error:
        raise FormatError(path, f"its stream is damaged ({error})") from None
    if len(stream) != 2 * count:
        raise FormatError(path, f"its stream ends before {count} coefficients are there")
    poses = torch.tensor([VIEW.unpack_from(data, HEADER.size + i * VIEW.size) for i in range(v)])
    if not bool(torch.isfinite(poses).all()) or not math.isfinite(step):
        raise FormatError(path, "its cameras are not finite")
    two = torch.frombuffer(bytearray(stream), dtype=torch.uint8).reshape(2, count).T
    levels = two.contiguous().flatten().view(torch.int16).float()
    rows, columns = height // SIDE, width // SIDE
    levels = levels.reshape(SIDE * SIDE, 4, v, rows, columns).permute(2, 1, 3, 4, 0)
    tiles = torch.zeros_like(levels)
    tiles[..., frequencies()] = levels
    C = cosines()
    tiles = C.T @ (tiles.reshape(*tiles.shape[:-1], SIDE, SIDE) * steps_of(step)) @ C
    latent = tiles.permute(0, 1, 2, 4, 3, 5).reshape(v, 4, height, width)
    colours = torch.einsum("ji,vjhw->vihw", opponents(), latent[:, :3])
    pictures = torch.cat([colours, latent[:, 3:]], 1).clamp(0, 1)
    bottom = torch.tensor([0.0, 0.0, 0.0, 1.0]).expand(v, 1, 4)
    w2c = torch.cat([poses[:, :12].reshape(v, 3, 4), bottom], 1)
    K = torch.zeros(v, 3, 3)
    K[:, 0, 0], K[:, 1, 1], K[:, 0, 2], K[:, 1, 2] = poses[:, 12:].unbind(-1)
    K[:, 2, 2] = 1
    large = pictures.repeat_interleave(STRIDE, -1).repeat_interleave(STRIDE, -2)
    cameras = Cameras(w2c, K, width, height)
    return large, cameras.resized(width * STRIDE, height * STRIDE)


@torch.no_grad()
def seen_from(
    gaussians: Gaussians, views: int = 4, *, size: int = 64
) -> tuple[Float[Tensor, "v 4 size size"], Cameras]:
    """Return pictures (straight colours and alpha) of an object from evenly placed cameras."""
    middle, reach = gaussians.extent()
    # As large in the picture as a ball of radius 0.8 at 2.2 from the camera.
    cameras = Cameras.orbit(
        views, elevation=15, radius=2.2 / 0.8 * reach, target=middle, fov=FOV, width=size
    )
    rendering = gaussians.render(cameras, background=(0.0, 0.0, 0.0))
    alpha = rendering.alpha[..., None].clamp(0, 1)
    straight = (rendering.rgb / alpha.clamp_min(1e-3)).clamp(0, 1)
    return torch.cat([straight, alpha], -1).permute(0, 3, 1, 2), cameras
