"""4D Gaussians: a scene in motion, cut at a moment into 3D Gaussians.

Yang et al. 2024, "Real-time Photorealistic Dynamic Scene Representation and Rendering with 4D
Gaussian Splatting" (arXiv:2310.10642), the primitive of 4D-LRM (arXiv:2506.18890). With a mean in
(x, y, z, t), four scales and two unit quaternions, R = L(q_l) R(q_r) and Sigma = R S S^T R^T:
  mu_x|t    = mu_x + Sigma_xt / Sigma_tt (t - mu_t)                                         Eq. (8)
  Sigma_x|t = Sigma_xx - Sigma_xt Sigma_tx / Sigma_tt                                       Eq. (8)
  o_t       = o exp(-(t - mu_t)^2 / (2 Sigma_tt))                                           Eq. (7)
The cut is an ordinary scene: a Gaussian moves at the velocity Sigma_xt / Sigma_tt while it lasts.

Differs from the authors' code: colours do not change with time (no 4D harmonics); no model that
predicts such scenes is here, only the primitive and its gradients.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.kernels.gs_harmonics import harmonics_to_colours
from skipstep.kernels.gs_project import project_factors
from skipstep.kernels.gs_rotate import quaternion_of
from skipstep.pipelines.splat.cameras import Cameras
from skipstep.pipelines.splat.gaussians import Gaussians
from skipstep.pipelines.splat.render import NEAR, Rendering, draw_projected

__all__ = ["SpaceTimeGaussians", "rotation_4d"]

# Keeps Cholesky's roots real where rounding makes a flat Gaussian's covariance singular.
JITTER = 1e-10


@dataclass(frozen=True)
class SpaceTimeGaussians:
    """Splats of one scene in space and time; units as in `Gaussians`, time in any unit.

    Attributes:
        means: Centres (x, y, z, t).
        left: Quaternions q_l (w, x, y, z), of any length but 0; equal to the conjugate of `right`
            where space and time do not mix.
        right: Quaternions q_r.
        scales: Standard deviations along the four rotated axes.
        opacities: 0 to 1, at the time of the mean.
        sh: Spherical harmonics, as in `Gaussians`.
    """

    means: Float[Tensor, "n 4"]
    left: Float[Tensor, "n 4"]
    right: Float[Tensor, "n 4"]
    scales: Float[Tensor, "n 4"]
    opacities: Float[Tensor, " n"]
    sh: Float[Tensor, "n k 3"]

    def __len__(self) -> int:
        return len(self.means)

    def covariances(self) -> Float[Tensor, "n 4 4"]:
        """Return Sigma."""
        M = rotation_4d(self.left, self.right) * self.scales[:, None, :]
        return M @ M.mT

    def cut(
        self, time: float
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3 3"], Float[Tensor, " n"]]:
        """Return means, covariances and opacities at a time, differentiably."""
        sigma = self.covariances()
        mixed, spread = sigma[:, :3, 3], sigma[:, 3, 3]
        velocity = mixed / spread[:, None]
        late = time - self.means[:, 3]
        means = self.means[:, :3] + velocity * late[:, None]
        covariances = sigma[:, :3, :3] - velocity[:, :, None] * mixed[:, None]
        return means, covariances, self.opacities * torch.exp(-late.square() / (2 * spread))

    @torch.no_grad()
    def at(self, time: float) -> Gaussians:
        """Return the 3D Gaussians of a moment, to save or to edit; see `render` for gradients."""
        means, covariances, opacities = self.cut(time)
        spread, axes = torch.linalg.eigh(covariances)
        u, v = axes[..., 0], axes[..., 1]
        quats = quaternion_of(torch.stack([u, v, torch.linalg.cross(u, v)], -1))
        return Gaussians(means, quats, spread.clamp_min(JITTER).sqrt(), opacities, self.sh)

    def render(
        self,
        cameras: Cameras,
        time: float,
        *,
        background: tuple[float, float, float] = (1.0, 1.0, 1.0),
    ) -> Rendering:
        """Render all views at one time; gradients reach every parameter."""
        means, covariances, opacities = self.cut(time)
        jitter = JITTER * torch.eye(3).to(covariances)
        projected = project_factors(
            means,
            torch.linalg.cholesky(covariances + jitter),
            cameras.w2c,
            cameras.K,
            width=cameras.width,
            height=cameras.height,
            near=NEAR,
        )
        d = torch.nn.functional.normalize(means - cameras.centres[:, None], dim=-1)
        channels = {"rgb": harmonics_to_colours(self.sh, d)}
        maps, alpha, depth = draw_projected(*projected, opacities, cameras, channels, True)
        rgb = maps["rgb"] + (1 - alpha)[..., None] * alpha.new_tensor(background)
        return Rendering(rgb, alpha, depth)


def rotation_4d(left: Float[Tensor, "n 4"], right: Float[Tensor, "n 4"]) -> Float[Tensor, "n 4 4"]:
    """Return L(q_l) R(q_r), any rotation of space and time.

    >>> one = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    >>> torch.equal(rotation_4d(one, one)[0], torch.eye(4))
    True
    """
    a, b, c, d = torch.nn.functional.normalize(left, dim=-1).unbind(-1)
    p, q, r, s = torch.nn.functional.normalize(right, dim=-1).unbind(-1)
    L = [*(a, -b, -c, -d), *(b, a, -d, c), *(c, d, a, -b), *(d, -c, b, a)]
    R = [*(p, -q, -r, -s), *(q, p, s, -r), *(r, -s, p, q), *(s, r, -q, p)]
    return torch.stack(L, -1).reshape(-1, 4, 4) @ torch.stack(R, -1).reshape(-1, 4, 4)
