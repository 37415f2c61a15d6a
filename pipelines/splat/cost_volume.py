"""A feed-forward reconstructor with a cost volume: posed pictures in, one Gaussian per pixel out.

After MVSplat (Chen et al. 2024, arXiv:2403.14627) and SparSplat (arXiv:2505.02175): geometry comes
from plane sweeping, not from the network's memory, which is why it learns in hours of one CPU core.
For every pixel of every view, D planes of depth z_1 < ... < z_D are projected into all other views:
  occ_i = the product of their alphas (inside the visual hull),  dif_i = mean |colour - own colour|
A hazard turns both into the chance that the ray ends at plane i, the prior of the softmax:
  h_i = sigmoid(a logit(occ_i) + b - c dif_i),   P_i = h_i prod_{j<i} (1 - h_j)
  p = softmax(log P + 4 residual),   z = sum_i p_i z_i,   mean = o + z d
A U-Net over [picture, rays (o x d, d), occ, dif] with attention among the tokens of all views
predicts the residual, and per Gaussian: colour correction, scales, quaternion, opacity.

Differs from the papers' code: colours instead of learnt features in the volume, silhouettes where
an alpha channel is given, one scale of planes, any number of views without retraining.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["CostVolumeGaussianModel", "PixelGaussians", "pixel_rays", "sweep"]

F = nn.functional


@dataclass
class PixelGaussians:
    """Gaussians of a batch of scenes, one per pixel of the splat maps; z is their depth."""

    means: Float[Tensor, "b n 3"]
    quats: Float[Tensor, "b n 4"]
    scales: Float[Tensor, "b n 3"]
    opacities: Float[Tensor, "b n"]
    colours: Float[Tensor, "b n 3"]
    z: Float[Tensor, "b v height width"]


def pixel_rays(
    w2c: Float[Tensor, "b v 4 4"], K: Float[Tensor, "b v 3 3"], height: int, width: int
) -> tuple[Float[Tensor, "b v 3"], Float[Tensor, "b v height width 3"]]:
    """Return camera centres and directions with z = 1 in the camera; K is of this size."""
    y, x = torch.meshgrid(
        torch.arange(height, device=K.device) + 0.5,
        torch.arange(width, device=K.device) + 0.5,
        indexing="ij",
    )
    pixels = torch.stack([x, y, torch.ones_like(x)], -1).to(K.dtype)
    rotation = w2c[..., :3, :3]
    o = -(rotation.mT @ w2c[..., :3, 3:])[..., 0]
    return o, torch.einsum("hwc,bvcd->bvhwd", pixels, torch.linalg.inv(K).mT @ rotation)


def sweep(
    pictures: Float[Tensor, "b v 4 height width"],
    w2c: Float[Tensor, "b v 4 4"],
    K: Float[Tensor, "b v 3 3"],
    z: Float[Tensor, " d"],
    *,
    others: list[list[int]] | None = None,
) -> tuple[Float[Tensor, "b v d height width"], Float[Tensor, "b v d height width"]]:
    """Return occ and dif of every pixel and plane; a view that does not see a point has no say.

    Row r of `others` names for every view the r-th view it is compared with: by default all.
    """
    b, v, _, height, width = pictures.shape
    o, d = pixel_rays(w2c, K, height, width)
    own = pictures[:, :, :3, None]
    occ = pictures.new_ones(b, v, len(z), height, width)
    dif, weight = torch.zeros_like(occ), torch.zeros_like(occ)
    half = K.new_tensor([width / 2, height / 2])
    if others is None:
        others = [[(view + step) % v for view in range(v)] for step in range(1, v)]
    for other in others:
        # Points o + z d in pixels of the other view are affine in z: z A + e.
        P = K[:, other] @ w2c[:, other, :3]
        A = torch.einsum("bvij,bvhwj->bvhwi", P[..., :3], d)
        e = torch.einsum("bvij,bvj->bvi", P[..., :3], o) + P[..., 3]
        q = z[:, None, None, None] * A[:, :, None] + e[:, :, None, None, None]
        deep = q[..., 2:]
        at = q[..., :2] / deep.clamp_min(0.05) / half - 1
        sees = ((at.abs() <= 1).all(-1) & (deep[..., 0] > 0.05)).to(occ.dtype)
        seen = F.grid_sample(
            pictures[:, other].flatten(0, 1),
            at.view(b * v, len(z) * height, width, 2),
            align_corners=False,
        ).view(b, v, 4, len(z), height, width)
        alpha = seen[:, :, 3] * sees
        occ = occ * (alpha + 1 - sees)
        dif = dif + (seen[:, :, :3] - own).abs().mean(2) * alpha
        weight = weight + alpha
    return occ, dif / weight.clamp_min(0.2)


def log_prior(
    occ: Float[Tensor, "b v d height width"],
    dif: Float[Tensor, "b v d height width"],
    hazard: Float[Tensor, " 3"],
) -> Float[Tensor, "b v d height width"]:
    """Return log P: where a ray ends if planes stop it with the chances h."""
    a, b, c = hazard
    h = torch.sigmoid(a * torch.logit(occ.clamp(0.02, 0.9)) + b - c * dif)
    passed = torch.log1p(-h.clamp_max(0.99))
    return torch.log(h * torch.exp(passed.cumsum(2) - passed) + 1e-3)


class CostVolumeGaussianModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # untyped bases
    """Posed pictures to Gaussians; see the module's docstring. Near and far bound the depths."""

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers is untyped
    def __init__(
        self,
        stride: int = 2,
        planes: int = 32,
        near: float = 1.3,
        far: float = 3.1,
        channels: Sequence[int] = (48, 96, 128),
        heads: int = 4,
        layers: int = 4,
    ) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.hazard = nn.Parameter(torch.tensor([1.0, 0.0, 4.0]))
        self.enter = nn.Conv2d(10 + 2 * planes, fine, 3, padding=1)
        self.fine_in = residual(fine, fine)
        self.down_middle = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.middle_in = residual(middle, middle)
        self.down_coarse = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.coarse_in = residual(coarse, coarse)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(coarse, heads, coarse // heads, activation_fn="gelu")
            for _ in range(layers)
        )
        self.middle_out = residual(coarse + middle, middle)
        self.fine_out = residual(middle + fine, fine)
        self.leave = nn.Conv2d(fine, planes + 11, 3, padding=1)
        # The untrained model is the prior itself.
        nn.init.normal_(self.leave.weight, std=1e-3)
        nn.init.constant_(self.leave.get_parameter("bias"), 0.0)

    @property
    def planes(self) -> Float[Tensor, " d"]:
        """Return the depths of the planes."""
        config: Any = self.config
        return torch.linspace(config.near, config.far, config.planes, device=self.hazard.device)

    def forward(
        self,
        pictures: Float[Tensor, "b v 4 height width"],
        w2c: Float[Tensor, "b v 4 4"],
        K: Float[Tensor, "b v 3 3"],
    ) -> PixelGaussians:
        """Return the Gaussians of pictures (RGB over white and alpha, 0 to 1) with K in pixels.

        Height and width are multiples of 4 times the stride.
        """
        config: Any = self.config
        stride, b, v = config.stride, *pictures.shape[:2]
        if any(size % (4 * stride) for size in pictures.shape[-2:]):
            raise ValueError(
                f"pictures of {pictures.shape[-1]} x {pictures.shape[-2]} do not fit: both sizes "
                f"must be multiples of {4 * stride}; resize them and the cameras with them"
            )
        small = F.avg_pool2d(pictures.flatten(0, 1), stride).reshape(
            b, v, 4, *[size // stride for size in pictures.shape[-2:]]
        )
        height, width = small.shape[-2:]
        K = K / K.new_tensor([[stride], [stride], [1.0]])
        with torch.no_grad():
            occ, dif = sweep(small, w2c, K, self.planes)
            o, d = pixel_rays(w2c, K, height, width)
        unit = F.normalize(d, dim=-1)
        centre = o[:, :, None, None].expand_as(d)
        rays = torch.cat([torch.linalg.cross(centre, unit), unit], -1).permute(0, 1, 4, 2, 3)
        raw = self.network(torch.cat([small * 2 - 1, rays, occ, 2 * dif], 2))

        p = torch.softmax(log_prior(occ, dif, self.hazard) + 4 * raw[:, :, : len(self.planes)], 2)
        z = torch.einsum("bvdhw,d->bvhw", p, self.planes)
        rgb, scale, quat, opacity = torch.split(raw[:, :, len(self.planes) :], [3, 3, 4, 1], 2)
        alpha = small[:, :, 3:]
        # The pictures are over white: take the white out again.
        bare = ((small[:, :, :3] - (1 - alpha)) / alpha.clamp_min(0.3)).clamp(0, 1)
        pixel = z / K[:, :, 0, 0, None, None]
        scales = 0.45 * pixel[:, :, None] * torch.exp(scale.clamp(-3, 2))

        def flat(maps: Tensor) -> Tensor:
            return maps.permute(0, 1, 3, 4, 2).flatten(1, 3)

        return PixelGaussians(
            means=(centre + d * z[..., None]).flatten(1, 3),
            quats=flat(quat) + quat.new_tensor([1.0, 0.0, 0.0, 0.0]),
            scales=flat(scales),
            opacities=flat(torch.sigmoid(4 * opacity + 12 * (alpha - 0.5)))[..., 0],
            colours=flat((bare + 0.5 * torch.tanh(rgb)).clamp(0, 1)),
            z=z,
        )

    def network(
        self, x: Float[Tensor, "b v c height width"]
    ) -> Float[Tensor, "b v k height width"]:
        """Run the U-Net on every view, with attention among all views at its bottom."""
        b, v = x.shape[:2]
        fine = self.fine_in(self.enter(x.flatten(0, 1)), None)
        middle = self.middle_in(self.down_middle(fine), None)
        coarse = self.coarse_in(self.down_coarse(middle), None)
        height, width = coarse.shape[-2:]
        tokens = coarse.flatten(2).mT.reshape(b, v * height * width, -1)  # [b, v height width, c]
        for block in self.transformer_blocks:
            tokens = block(tokens)
        coarse = tokens.reshape(b * v, height * width, -1).mT.reshape(b * v, -1, height, width)
        up = F.interpolate(coarse, scale_factor=2.0)
        up = F.interpolate(self.middle_out(torch.cat([up, middle], 1), None), scale_factor=2.0)
        up = self.fine_out(torch.cat([up, fine], 1), None)
        out: Tensor = self.leave(F.silu(up))
        return out.reshape(b, v, *out.shape[1:])


def residual(inside: int, outside: int) -> nn.Module:
    """Build a residual block without time."""
    block: nn.Module = ResnetBlock2D(
        in_channels=inside, out_channels=outside, temb_channels=None, groups=8
    )
    return block
