"""Level of detail: far parts of a scene are drawn with fewer, larger Gaussians.

Distances after ARTDECO (Li et al. 2025, arXiv:2510.08551): a Gaussian has a d_max; beyond it its
opacity fades by (2 d_max - d) / d_max, and at 2 d_max it is gone. Levels after Hierarchical 3D
Gaussians (Kerbl et al. 2024, arXiv:2406.12080): level k + 1 merges what shares a cell of twice the
size, with weights w = opacity times area, by matching moments:
  mean = sum w mu / sum w,   Sigma = sum w (Sigma_i + (mu_i - mean)(mu_i - mean)^T) / sum w
  o = sum w / area of the merged Gaussian
From d_max_k = focal cell_(k+1) / pixels on, a cell of level k + 1 covers at most `pixels` pixels;
it fades in over the distances where level k fades out: at most two levels show anywhere.

Differs from both: ARTDECO makes its levels while mapping and shows coarse Gaussians near too;
Kerbl's hierarchy is a tree of boxes that is cut per node.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.kernels.gs_project import rotation_matrices
from skipstep.kernels.gs_rotate import quaternion_of
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.render import Rendering

__all__ = ["LevelsOfDetail", "merged"]

MOST_OPAQUE = 0.999


@dataclass(frozen=True)
class LevelsOfDetail:
    """A scene in levels, finest first, and the distance from which each fades out.

    The last level never fades.
    """

    levels: list[Gaussians]
    d_max: list[float]

    @classmethod
    def build(
        cls, gaussians: Gaussians, *, focal: float, levels: int = 4, pixels: float = 1.0
    ) -> "LevelsOfDetail":
        """Build levels for cameras with a focal length of `focal` pixels.

        A level is used where its cells cover at most `pixels` pixels.

        Raises ValueError when there is no level or no Gaussian.
        """
        if levels < 1 or not len(gaussians):
            raise ValueError(
                f"{levels} levels of {len(gaussians)} Gaussians: there must be one of each at least"
            )
        solid = gaussians.solid()
        cell = 2.0 * float(solid.scales.amax(-1).median())
        made, distances = [solid], []
        for _ in range(levels - 1):
            distances.append(focal * 2 * cell / pixels)
            cell *= 2
            made.append(merged(solid, cell))
        return cls(made, [*distances, float("inf")])

    def seen_from(self, centre: Float[Tensor, " 3"]) -> Gaussians:
        """Return the Gaussians to draw for a camera at `centre`."""
        chosen, nearer = [], 0.0
        for gaussians, d_max in zip(self.levels, self.d_max, strict=True):
            d = (gaussians.means - centre.to(gaussians.means)).norm(dim=-1)
            leaving = ((2 * d_max - d) / d_max).clamp(0, 1) if d_max < float("inf") else 1.0
            coming = ((d - nearer) / nearer).clamp(0, 1) if nearer else torch.ones_like(d)
            opacities = gaussians.opacities * coming * leaving
            chosen.append(replace(gaussians, opacities=opacities).pruned())
            nearer = d_max
        return Gaussians.cat(chosen)

    def render(self, cameras: Cameras, **options: object) -> Rendering:
        """Render every view with the Gaussians for its distance; options as in `Gaussians`."""
        views = [
            self.seen_from(cameras.centres[view]).render(cameras[view], **options)
            for view in range(len(cameras))
        ]
        first = views[0]
        joined = {
            name: torch.cat([getattr(view, name) for view in views])
            for name in ("rgb", "alpha", "depth", "normal")
            if getattr(first, name) is not None
        }
        features = {
            name: torch.cat([view.features[name] for view in views]) for name in first.features
        }
        return Rendering(**joined, features=features)


@torch.no_grad()
def merged(gaussians: Gaussians, cell: float) -> Gaussians:
    """Return one Gaussian per occupied cell of a grid, with the moments of what it held."""
    places = torch.floor(gaussians.means / cell).long()
    _, group = torch.unique(places, dim=0, return_inverse=True)
    count = int(group.max()) + 1
    w = gaussians.opacities * area(gaussians.scales)

    def mean(values: Tensor) -> Tensor:
        weight = w.reshape(-1, *[1] * (values.ndim - 1))
        total = values.new_zeros(count, *values.shape[1:]).index_add_(0, group, weight * values)
        return total / sums.reshape(-1, *[1] * (values.ndim - 1))

    sums = w.new_zeros(count).index_add_(0, group, w).clamp_min(1e-20)
    means = mean(gaussians.means)
    M = rotation_matrices(gaussians.quats) * gaussians.scales[:, None, :]
    off = gaussians.means - means[group]
    spread, axes = torch.linalg.eigh(mean(M @ M.mT + off[:, :, None] * off[:, None]).double())
    u, v = axes[..., 0], axes[..., 1]
    quats = quaternion_of(torch.stack([u, v, torch.linalg.cross(u, v)], -1))
    scales = spread.clamp_min(1e-16).sqrt().to(means)
    return Gaussians(
        means=means,
        quats=quats.to(means),
        scales=scales,
        opacities=(sums / area(scales)).clamp_max(MOST_OPAQUE),
        sh=mean(gaussians.sh),
        features={name: mean(values) for name, values in gaussians.features.items()},
    )


def area(scales: Float[Tensor, "n 3"]) -> Float[Tensor, " n"]:
    """Return the product of the two largest axes: how much a splat covers, up to a factor."""
    return scales.prod(-1) / scales.amin(-1)
