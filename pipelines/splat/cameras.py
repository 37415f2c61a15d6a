"""Pinhole cameras: OpenCV axes (x right, y down, z forward), intrinsics in pixels.

The centre of pixel (i, j) is (i + 0.5, j + 0.5). The world is y-down too, as splat viewers expect:
up is -y. `from_c2w` turns OpenGL poses (NeRF, Blender: y up, z backward) into this convention.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Cameras"]


@dataclass(frozen=True)
class Cameras:
    """Views of one size. Index with an int, a slice or a list of ints to select views."""

    w2c: Float[Tensor, "v 4 4"]
    K: Float[Tensor, "v 3 3"]
    width: int
    height: int

    def __len__(self) -> int:
        return len(self.w2c)

    def __getitem__(self, views: int | slice | Sequence[int] | Tensor) -> "Cameras":
        chosen = [views] if isinstance(views, int) else views
        return replace(self, w2c=self.w2c[chosen], K=self.K[chosen])

    @classmethod
    def from_c2w(
        cls,
        c2w: Float[Tensor, "v 4 4"],
        K: Float[Tensor, "v 3 3"],
        *,
        width: int,
        height: int,
        convention: str = "opencv",
    ) -> "Cameras":
        """Build cameras from camera-to-world poses, of convention "opencv" or "opengl"."""
        if convention not in ("opencv", "opengl"):
            raise ValueError(f"convention {convention!r} is unknown: use 'opencv' or 'opengl'")
        if convention == "opengl":
            c2w = c2w * c2w.new_tensor([1.0, -1.0, -1.0, 1.0])
        return cls(torch.linalg.inv(c2w), K, width, height)

    @classmethod
    def look_at(
        cls,
        centres: Float[Tensor, "v 3"],
        *,
        target: Float[Tensor, " 3"] | None = None,
        up: tuple[float, float, float] = (0.0, -1.0, 0.0),
        fov: float = 49.1,
        width: int = 256,
        height: int | None = None,
    ) -> "Cameras":
        """Place cameras at `centres` that look at `target` (the origin); `fov` is the width's."""
        height = width if height is None else height
        forward = (centres.new_zeros(3) if target is None else target) - centres
        z = torch.nn.functional.normalize(forward, dim=-1)
        x = torch.linalg.cross(z, centres.new_tensor(up).expand_as(z))
        # Straight up or down every direction is sideways: take the world's x.
        sideways = x.norm(dim=-1, keepdim=True) < 1e-6
        x = torch.where(sideways, centres.new_tensor([1.0, 0.0, 0.0]), x)
        x = torch.nn.functional.normalize(x, dim=-1)
        rotation = torch.stack([x, torch.linalg.cross(z, x), z], -2)
        w2c = torch.eye(4, dtype=centres.dtype).repeat(len(centres), 1, 1)
        w2c[:, :3, :3] = rotation
        w2c[:, :3, 3] = -(rotation @ centres[..., None])[..., 0]
        return cls(
            w2c, cls.intrinsics(fov, width, height).repeat(len(centres), 1, 1), width, height
        )

    @staticmethod
    def intrinsics(fov: float, width: int, height: int) -> Float[Tensor, "3 3"]:
        """Return K of a camera with square pixels and `fov` degrees over the width."""
        focal = 0.5 * width / math.tan(math.radians(fov) / 2)
        return torch.tensor([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])

    @classmethod
    def around(
        cls,
        azimuths: Float[Tensor, " v"],
        elevations: Float[Tensor, " v"],
        *,
        radius: float = 2.2,
        target: Float[Tensor, " 3"] | None = None,
        fov: float = 49.1,
        width: int = 256,
        height: int | None = None,
    ) -> "Cameras":
        """Place cameras on a sphere around `target`; angles in degrees, azimuth 0 is at +z."""
        target = torch.zeros(3) if target is None else target
        azimuth, elevation = torch.deg2rad(azimuths), torch.deg2rad(elevations)
        centres = radius * torch.stack(
            [
                elevation.cos() * azimuth.sin(),
                -elevation.sin(),
                elevation.cos() * azimuth.cos(),
            ],
            -1,
        )
        return cls.look_at(centres + target, target=target, fov=fov, width=width, height=height)

    @classmethod
    def orbit(
        cls,
        views: int = 36,
        *,
        elevation: float = 15.0,
        radius: float = 2.2,
        target: Float[Tensor, " 3"] | None = None,
        fov: float = 49.1,
        width: int = 256,
        height: int | None = None,
    ) -> "Cameras":
        """Place cameras evenly on a circle around `target`, by default the origin.

        >>> len(Cameras.orbit(8))
        8
        """
        azimuths = torch.arange(views) * (360.0 / views)
        elevations = torch.full((views,), float(elevation))
        return cls.around(
            azimuths,
            elevations,
            radius=radius,
            target=target,
            fov=fov,
            width=width,
            height=height,
        )

    def swing(self, view: int, *, distance: float, amount: float, views: int = 36) -> "Cameras":
        """Return cameras on a small circle around one view, all looking `distance` ahead of it.

        `amount` is the circle's radius over the distance. It needs no idea of what is up.
        """
        c2w = torch.linalg.inv(self.w2c[view])
        turn = torch.arange(views) * (2 * math.pi / views)
        circle = torch.stack([turn.sin(), 0.4 * turn.cos(), torch.zeros(views)], -1)
        ahead = c2w[:3, 3] + distance * c2w[:3, 2]
        centres = c2w[:3, 3] + amount * distance * circle.to(c2w) @ c2w[:3, :3].T
        x, y, z = (-c2w[:3, 1]).tolist()
        looking = Cameras.look_at(centres, target=ahead, up=(x, y, z))
        return replace(self, w2c=looking.w2c, K=self.K[view].expand(views, 3, 3))

    def resized(self, width: int, height: int) -> "Cameras":
        """Return the same views at another size in pixels; K is scaled with them."""
        factors = self.K.new_tensor([[width / self.width], [height / self.height], [1.0]])
        return replace(self, K=self.K * factors, width=width, height=height)

    def to(self, device: torch.device | str) -> "Cameras":
        """Move to a device."""
        return replace(self, w2c=self.w2c.to(device), K=self.K.to(device))

    @property
    def centres(self) -> Float[Tensor, "v 3"]:
        """Return where the cameras stand."""
        rotation, translation = self.w2c[:, :3, :3], self.w2c[:, :3, 3:]
        return -(rotation.mT @ translation)[..., 0]

    def rays(self, per_pixel: int = 1) -> Float[Tensor, "v height width 3"]:
        """Return ray directions in the world whose z in the camera is 1: times z-depth, a point.

        `per_pixel` rays per axis and pixel (4 rays for 2).
        """
        steps = [
            (torch.arange(size * per_pixel, device=self.K.device, dtype=self.K.dtype) + 0.5)
            / per_pixel
            for size in (self.height, self.width)
        ]
        y, x = torch.meshgrid(*steps, indexing="ij")
        pixels = torch.stack([x, y, torch.ones_like(x)], -1)
        return torch.einsum(
            "hwc,vcd->vhwd", pixels, (torch.linalg.inv(self.K).mT @ self.w2c[:, :3, :3])
        )
