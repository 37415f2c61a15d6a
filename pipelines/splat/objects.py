"""Procedural objects with exact pictures, depth and alpha: training data without a download.

An object is 2 to 5 primitives (ellipsoid, box, capped cylinder, cone) with random poses and one of
five textures, lit by one lamp. A ray o + z d meets the unit primitive in its own frame:
  ellipsoid  |o + z d| = 1            box    slabs |x|, |y|, |z| <= 1
  cylinder   x^2 + z^2 = 1, |y| <= 1  cone   x^2 + z^2 = ((1 - y) / 2)^2, |y| <= 1
Colours are averaged over 2 x 2 rays per pixel. An object is a pure function of its seed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from skipstep.kernels.gs_project import rotation_matrices
from skipstep.pipelines.splat.cameras import Cameras

__all__ = ["Primitive", "input_cameras", "new_object", "novel_cameras", "picture", "trace"]

MISSED = 1e9
LAMP = (0.4, -0.8, 0.45)
KINDS = ("ellipsoid", "box", "cylinder", "cone")
TEXTURES = ("plain", "checker", "stripes", "gradient", "waves")
DISTANCE, FOV = 2.2, 49.1


@dataclass(frozen=True)
class Primitive:
    """One part of an object; `rotation` and `size` map the unit primitive into the world."""

    kind: str
    size: Float[Tensor, " 3"]
    place: Float[Tensor, " 3"]
    rotation: Float[Tensor, "3 3"]
    texture: str
    colours: Float[Tensor, "2 3"]
    frequency: float
    axis: Float[Tensor, " 3"]


def new_object(seed: int) -> list[Primitive]:
    """Return the object of a seed; it fits into a sphere of radius 1 around the origin."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    def one_of(names: tuple[str, ...]) -> str:
        return names[int(torch.randint(len(names), (), generator=generator))]

    parts = []
    for part in range(int(torch.randint(2, 6, (), generator=generator))):
        kind, size = one_of(KINDS), between(0.15, 0.45, 3)
        if kind in ("cylinder", "cone"):
            size[0] = size[2]
        quat = torch.randn(4, generator=generator)
        is_turned = between(0, 1).item() < 0.6
        parts.append(
            Primitive(
                kind=kind,
                size=size,
                place=between(-0.4, 0.4, 3) if part else torch.zeros(3),
                rotation=rotation_matrices(quat)
                if is_turned
                else torch.diag(torch.tensor([1.0, -1.0, -1.0])),
                texture=one_of(TEXTURES),
                colours=between(0, 1, 2, 3),
                frequency=between(3, 8).item(),
                axis=torch.nn.functional.normalize(torch.randn(3, generator=generator), dim=0),
            )
        )
    return parts


def meet(
    kind: str, o: Float[Tensor, "r 3"], d: Float[Tensor, "r 3"]
) -> tuple[Float[Tensor, " r"], Float[Tensor, "r 3"]]:
    """Return where rays meet the unit primitive first (MISSED: nowhere) and its normal there."""
    if kind == "ellipsoid":
        return meet_sphere(o, d)
    return meet_box(o, d) if kind == "box" else meet_round(o, d, is_cone=kind == "cone")


def meet_sphere(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Meet the unit sphere."""
    a, b, c = (d * d).sum(-1), (o * d).sum(-1), (o * o).sum(-1) - 1
    inside = b * b - a * c
    z = (-b - inside.clamp_min(0).sqrt()) / a
    z = torch.where((inside > 0) & (z > 0), z, MISSED)
    return z, o + z[:, None] * d


def meet_box(o: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Meet the cube from -1 to 1: the last slab entered before the first is left."""
    inverse = 1 / torch.where(d.abs() < 1e-9, 1e-9, d)
    one, two = (-1 - o) * inverse, (1 - o) * inverse
    enter, axis = torch.minimum(one, two).max(-1)
    leave = torch.maximum(one, two).amin(-1)
    normal = torch.zeros_like(d).scatter_(1, axis[:, None], -d.gather(1, axis[:, None]).sign())
    return torch.where((enter < leave) & (enter > 0), enter, MISSED), normal


def meet_round(o: Tensor, d: Tensor, is_cone: bool) -> tuple[Tensor, Tensor]:
    """Meet the capped unit cylinder or the cone with its tip at y = 1."""
    slope = 0.5 if is_cone else 0.0
    ox, oy, oz = o.unbind(-1)
    dx, dy, dz = d.unbind(-1)
    # The radius is r + s y: 1 for the cylinder, (1 - y) / 2 for the cone.
    r = 0.5 - 0.5 * oy if is_cone else torch.ones_like(oy)
    a = dx * dx + dz * dz - (slope * dy) ** 2
    b = ox * dx + oz * dz + slope * dy * r
    c = ox * ox + oz * oz - r * r
    inside = b * b - a * c
    root, a = inside.clamp_min(0).sqrt(), torch.where(a.abs() < 1e-9, 1e-9, a)
    z, normal = torch.full_like(oy, MISSED), torch.zeros_like(o)
    for side in ((-b - root) / a, (-b + root) / a):
        y = oy + side * dy
        hit = (inside > 0) & (side > 0) & (y.abs() <= 1) & (side < z)
        z = torch.where(hit, side, z)
        outward = torch.stack([ox + side * dx, slope * (1 - y) / 2, oz + side * dz], -1)
        normal = torch.where(hit[:, None], outward, normal)
    for cap in (-1.0,) if is_cone else (-1.0, 1.0):
        side = (cap - oy) / torch.where(dy.abs() < 1e-9, 1e-9, dy)
        px, pz = ox + side * dx, oz + side * dz
        hit = (side > 0) & (px * px + pz * pz <= 1) & (side < z)
        z = torch.where(hit, side, z)
        normal = torch.where(hit[:, None], normal.new_tensor([0.0, cap, 0.0]), normal)
    return z, normal


def texture(part: Primitive, q: Float[Tensor, "r 3"]) -> Float[Tensor, " r"]:
    """Return how much of the second colour is at points on the unit primitive."""
    x = q * part.size * (1.5 * part.frequency)
    if part.texture == "plain":
        return torch.zeros(len(q))
    if part.texture == "checker":
        return torch.floor(x).sum(-1) % 2
    if part.texture == "stripes":
        return torch.floor(x @ part.axis * 1.3) % 2
    if part.texture == "gradient":
        return (q @ part.axis * 0.5 + 0.5).clamp(0, 1)
    u, v, w = x.unbind(-1)
    waves = torch.sin(2 * u + torch.sin(1.7 * v)) * torch.sin(2 * w + torch.sin(u))
    return 0.5 + 0.5 * waves


def trace(
    parts: list[Primitive], o: Float[Tensor, "r 3"], d: Float[Tensor, "r 3"]
) -> tuple[Float[Tensor, "r 3"], Float[Tensor, " r"]]:
    """Return colours (white where nothing is) and distances in units of d (MISSED: nothing)."""
    lamp = torch.nn.functional.normalize(torch.tensor(LAMP), dim=0)
    nearest, colour = torch.full_like(o[:, 0], MISSED), torch.ones_like(o)
    for part in parts:
        # Only rays that pass the primitive's bounding sphere are worth the rest.
        towards = part.place - o
        along = (towards * d).sum(-1)
        off = (towards * towards).sum(-1) - along * along / (d * d).sum(-1)
        reach = part.size.square().sum() if part.kind != "ellipsoid" else part.size.max().square()
        near = (off < reach).nonzero()[:, 0]
        local_o = ((o[near] - part.place) @ part.rotation) / part.size
        local_d = (d[near] @ part.rotation) / part.size
        z, normal = meet(part.kind, local_o, local_d)
        first = z < nearest[near]
        rays, z = near[first], z[first]
        q = local_o[first] + z[:, None] * local_d[first]
        outward = (normal[first] / part.size) @ part.rotation.T
        outward = torch.nn.functional.normalize(outward, dim=-1)
        light = 0.5 + 0.5 * (outward @ lamp).clamp_min(0)
        mix = torch.lerp(part.colours[0], part.colours[1], texture(part, q)[:, None])
        colour[rays] = mix * light[:, None]
        nearest[rays] = z
    return colour, nearest


@torch.no_grad()
def picture(
    parts: list[Primitive], cameras: Cameras, *, per_pixel: int = 2
) -> tuple[UInt8[Tensor, "v 4 height width"], Float[Tensor, "v height width"]]:
    """Return pictures on white with alpha, 8 bits per channel, and z-depth (0 where nothing is)."""
    d = cameras.rays(per_pixel)
    o = cameras.centres[:, None, None].expand_as(d)
    colour, z = trace(parts, o.reshape(-1, 3), d.reshape(-1, 3))
    hit = (z < MISSED).to(z.dtype)[:, None]
    values = torch.cat([colour, hit, hit * z[:, None]], -1).reshape(*d.shape[:3], 5)
    values = torch.nn.functional.avg_pool2d(values.permute(0, 3, 1, 2), per_pixel)
    depth = values[:, 4] / values[:, 3].clamp_min(1e-6)
    return (values[:, :4] * 255).round().to(torch.uint8), depth


def input_cameras(seed: int, *, views: int = 4, size: int = 64) -> Cameras:
    """Return `views` cameras about evenly around an object, 15 +- 10 degrees above it."""
    generator = torch.Generator().manual_seed(seed)
    start = 360 * torch.rand(1, generator=generator)
    shake = 20 * torch.rand(2, views, generator=generator) - 10
    azimuths = start + torch.arange(views) * (360 / views) + shake[0]
    return Cameras.around(azimuths, 15 + shake[1], radius=DISTANCE, fov=FOV, width=size)


def novel_cameras(seed: int, *, views: int = 8, size: int = 64) -> Cameras:
    """Return cameras anywhere around an object, from 10 degrees below to 40 above it."""
    draws = torch.rand(2, views, generator=torch.Generator().manual_seed(seed + 10**6))
    return Cameras.around(360 * draws[0], -10 + 50 * draws[1], radius=DISTANCE, fov=FOV, width=size)
