"""A scene of 3D Gaussians, with values as they mean it: no logarithms, no logits.

Inverse activations live in the file formats alone. Conventions: cameras.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.kernels.gs_harmonics import colours_to_harmonics
from skipstep.kernels.gs_project import rotation_matrices
from skipstep.kernels.gs_rotate import multiply_quaternions, quaternion_of, rotate_harmonics
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.render import Rendering, render

__all__ = ["Gaussians"]


@dataclass(frozen=True)
class Gaussians:
    """Splats of one scene.

    Attributes:
        means: Centres in the world.
        quats: Rotations (w, x, y, z), of any length but 0.
        scales: Standard deviations along the rotated axes, positive: three of them, or two for flat
            surfels, whose third axis is their normal.
        opacities: 0 to 1.
        sh: Spherical harmonics of degree 0 to 3 (k = 1, 4, 9, 16).
        features: Further values per splat, rendered as channels of that name.
    """

    means: Float[Tensor, "n 3"]
    quats: Float[Tensor, "n 4"]
    scales: Float[Tensor, "n axes"]
    opacities: Float[Tensor, " n"]
    sh: Float[Tensor, "n k 3"]
    features: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_colours(
        cls, means: Tensor, quats: Tensor, scales: Tensor, opacities: Tensor, colours: Tensor
    ) -> "Gaussians":
        """Build splats whose colours (0 to 1) do not depend on the direction."""
        return cls(means, quats, scales, opacities, colours_to_harmonics(colours))

    def __len__(self) -> int:
        return len(self.means)

    @property
    def is_flat(self) -> bool:
        """Say whether these are 2D Gaussian surfels."""
        return self.scales.shape[-1] == 2

    def solid(self) -> "Gaussians":
        """Return 3D Gaussians: surfels get a tenth of their smaller axis as thickness.

        Files and viewers know no surfels. Their pictures are close, not equal.
        """
        if not self.is_flat:
            return self
        thin = 0.1 * self.scales.amin(-1, keepdim=True)
        return replace(self, scales=torch.cat([self.scales, thin], -1))

    def flattened(self) -> "Gaussians":
        """Return surfels: each Gaussian loses its thinnest axis, which becomes the normal."""
        if self.is_flat:
            return self
        order = self.scales.argsort(-1, descending=True)
        axes = rotation_matrices(self.quats).gather(2, order[:, None].expand(-1, 3, -1))
        u, v = axes[..., 0], axes[..., 1]
        quats = quaternion_of(torch.stack([u, v, torch.linalg.cross(u, v)], -1))
        return replace(self, quats=quats, scales=self.scales.gather(1, order[:, :2]))

    def __getitem__(self, chosen: slice | Tensor | Sequence[int]) -> "Gaussians":
        return self.each(lambda values: values[chosen])

    def each(self, function: Any) -> "Gaussians":
        """Return a copy with `function` applied to every tensor."""
        changed = {
            item.name: function(getattr(self, item.name))
            for item in fields(self)
            if isinstance(getattr(self, item.name), Tensor)
        }
        features = {name: function(values) for name, values in self.features.items()}
        return replace(self, **changed, features=features)

    def to(self, *target: Any) -> "Gaussians":
        """Move to a device or dtype."""
        return self.each(lambda values: values.to(*target))

    def detach(self) -> "Gaussians":
        """Return the splats without their gradients' history."""
        return self.each(lambda values: values.detach())

    @staticmethod
    def cat(parts: Sequence["Gaussians"]) -> "Gaussians":
        """Join scenes into one; all must have the same features and the same degree."""
        first = parts[0]
        names = {item.name for item in fields(first)} - {"features"}
        joined: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in parts]) for name in names
        }
        features = {
            name: torch.cat([part.features[name] for part in parts]) for name in first.features
        }
        return replace(first, **joined, features=features)

    def transformed(
        self,
        rotation: Float[Tensor, "3 3"],
        translation: Float[Tensor, " 3"],
        scale: float = 1.0,
    ) -> "Gaussians":
        """Return the scene at scale * rotation x + translation; harmonics turn with it."""
        rotation = rotation.to(self.means)
        return replace(
            self,
            means=scale * self.means @ rotation.T + translation.to(self.means),
            quats=multiply_quaternions(quaternion_of(rotation), self.quats),
            scales=scale * self.scales,
            sh=rotate_harmonics(self.sh, rotation),
        )

    def pruned(self, *, min_opacity: float = 1 / 255) -> "Gaussians":
        """Return the splats that can be seen at all."""
        return self[self.opacities >= min_opacity]

    def problems(self) -> list[str]:
        """Say what is wrong with the values; nothing is, when the list is empty."""
        found = []
        for name in ("means", "quats", "scales", "opacities", "sh"):
            values = getattr(self, name).flatten()
            bad = int((~torch.isfinite(values)).sum())
            if bad:
                found.append(f"{bad} values of {name} are not finite")
        if bool((self.scales <= 0).any()):
            found.append("scales are not all positive: were they given as logarithms?")
        if bool(((self.opacities < 0) | (self.opacities > 1)).any()):
            found.append("opacities are not all in 0 to 1: were they given as logits?")
        if bool((self.quats.norm(dim=-1) == 0).any()):
            found.append("some quaternions are 0")
        return found

    def checked(self) -> "Gaussians":
        """Return self, or raise ValueError that says what is wrong."""
        if problems := self.problems():
            raise ValueError("these Gaussians cannot be used: " + "; ".join(problems))
        return self

    def extent(self) -> tuple[Float[Tensor, " 3"], float]:
        """Return the middle of what is solid and the radius around it that holds nine tenths."""
        means = self.means.detach().cpu().float()
        solid = means[self.opacities.detach().cpu() > 0.1]
        solid = solid if len(solid) else means
        if not len(solid):
            return torch.zeros(3), 1.0
        middle = solid.median(0).values
        # torch.quantile takes at most 16 million values.
        distances = (solid - middle).norm(dim=-1)[:1_000_000]
        return middle, max(torch.quantile(distances, 0.9).item(), 1e-3)

    def orbit(self, views: int = 36, *, elevation: float = 15.0, width: int = 256) -> Rendering:
        """Render a full turn around the scene on white; `.pictures()` of it are PIL images."""
        middle, reach = self.extent()
        cameras = Cameras.orbit(
            views, elevation=elevation, radius=3.2 * reach, target=middle, width=width
        )
        with torch.no_grad():
            parts = [self.render(cameras[view].to(self.means.device)) for view in range(views)]
        rgb, alpha = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("rgb", "alpha")
        )
        return Rendering(rgb, alpha)

    def render(self, cameras: Cameras, **options: Any) -> Rendering:
        """Render the scene: see `skipstep.pipelines.splat.render.render`."""
        return render(self, cameras, **options)

    def save(self, path: str | Path, **options: Any) -> Path:
        """Write .ply, .splat, .spz or .html, by the ending of `path`."""
        from skipstep.pipelines.splat.files import save

        return save(self, path, **options)

    @classmethod
    def load(cls, path: str | Path) -> "Gaussians":
        """Read .ply, .splat or .spz, by the ending of `path`."""
        from skipstep.pipelines.splat.files import load

        return load(path)
