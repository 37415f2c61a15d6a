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
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

from skipstep.kernels.full_precision import full_precision
from skipstep.pipelines.splat.unet import ViewUNet

__all__ = [
    "CostVolumeGaussianModel",
    "EncodedViews",
    "PixelGaussians",
    "flat",
    "network_input",
    "pixel_rays",
    "sweep",
    "without_white",
]

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


@dataclass
class EncodedViews:
    """Views between encoder and decoder: tokens, what decoding takes of each, volume and rays."""

    tokens: Float[Tensor, "b v s d"]
    skips: tuple[Tensor, Tensor]
    small: Float[Tensor, "b v 4 height width"]
    K: Float[Tensor, "b v 3 3"]
    occ: Float[Tensor, "b v planes height width"]
    dif: Float[Tensor, "b v planes height width"]
    o: Float[Tensor, "b v 3"]
    d: Float[Tensor, "b v height width 3"]

    def __getitem__(self, views: Tensor) -> "EncodedViews":
        fine, middle = (skip[:, views] for skip in self.skips)
        rest = (self.small, self.K, self.occ, self.dif, self.o, self.d)
        return EncodedViews(
            self.tokens[:, views], (fine, middle), *(values[:, views] for values in rest)
        )

    @property
    def grid(self) -> tuple[int, int]:
        """Return how many rows and columns of tokens a view has."""
        return self.small.shape[-2] // 4, self.small.shape[-1] // 4


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
        self.hazard = nn.Parameter(torch.tensor([1.0, 0.0, 4.0]))
        self.unet = ViewUNet(10 + 2 * planes, planes + 11, channels, heads, layers)

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
        encoded = self.encode(pictures, w2c, K)
        return self.decode(encoded, self.fuse(encoded.tokens))

    @property
    def transformer_blocks(self) -> nn.ModuleList:
        """Return the blocks that fuse the tokens of all views."""
        return self.unet.transformer_blocks

    def encode(
        self,
        pictures: Float[Tensor, "b v 4 height width"],
        w2c: Float[Tensor, "b v 4 4"],
        K: Float[Tensor, "b v 3 3"],
        *,
        others: list[list[int]] | None = None,
    ) -> "EncodedViews":
        """Sweep every view against `others` (see `sweep`) and return its tokens."""
        small, K = self.shrink(pictures, K)
        occ, dif, o, d = self.volume(small, w2c, K, others)
        tokens, skips = self.unet.encode(network_input(small, occ, dif, o, d))
        return EncodedViews(tokens, skips, small, K, occ, dif, o, d)

    def fuse(self, tokens: Float[Tensor, "b v s d"]) -> Float[Tensor, "b v s d"]:
        """Let all tokens of all views attend to each other."""
        return self.unet.fuse(tokens)

    def decode(self, encoded: "EncodedViews", tokens: Float[Tensor, "b v s d"]) -> PixelGaussians:
        """Return the Gaussians of encoded views whose tokens were fused."""
        raw = self.unet.decode(tokens, encoded.skips).float()
        return self.gaussians(raw, encoded)

    def shrink(
        self, pictures: Float[Tensor, "b v 4 height width"], K: Float[Tensor, "b v 3 3"]
    ) -> tuple[Float[Tensor, "b v 4 rows columns"], Float[Tensor, "b v 3 3"]]:
        """Return pictures and K at the size of the splat maps."""
        config: Any = self.config
        stride = config.stride
        if any(size % (4 * stride) for size in pictures.shape[-2:]):
            raise ValueError(
                f"pictures of {pictures.shape[-1]} x {pictures.shape[-2]} do not fit: both sizes "
                f"must be multiples of {4 * stride}; resize them and the cameras with them"
            )
        small = F.avg_pool2d(pictures.flatten(0, 1), stride)
        return small.reshape(*pictures.shape[:3], *small.shape[-2:]), K / K.new_tensor(
            [[stride], [stride], [1.0]]
        )

    @full_precision
    @torch.no_grad()
    def volume(
        self,
        small: Float[Tensor, "b v 4 height width"],
        w2c: Float[Tensor, "b v 4 4"],
        K: Float[Tensor, "b v 3 3"],
        others: list[list[int]] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return occ and dif of every view and plane (see `sweep`), and its rays."""
        occ, dif = sweep(small, w2c, K, self.planes, others=others)
        return occ, dif, *pixel_rays(w2c, K, *small.shape[-2:])

    @full_precision
    def gaussians(
        self,
        raw: Float[Tensor, "b v k height width"],
        encoded: "EncodedViews",
    ) -> PixelGaussians:
        """Turn what the network says into Gaussians."""
        small, K, o, d = encoded.small, encoded.K, encoded.o, encoded.d
        prior = log_prior(encoded.occ, encoded.dif, self.hazard)
        p = torch.softmax(prior + 4 * raw[:, :, : len(self.planes)], 2)
        z = torch.einsum("bvdhw,d->bvhw", p, self.planes)
        rgb, scale, quat, opacity = torch.split(raw[:, :, len(self.planes) :], [3, 3, 4, 1], 2)
        alpha = small[:, :, 3:]
        pixel = z / K[:, :, 0, 0, None, None]
        scales = 0.45 * pixel[:, :, None] * torch.exp(scale.clamp(-3, 2))
        return PixelGaussians(
            means=(o[:, :, None, None] + d * z[..., None]).flatten(1, 3),
            quats=flat(quat) + quat.new_tensor([1.0, 0.0, 0.0, 0.0]),
            scales=flat(scales),
            opacities=flat(torch.sigmoid(4 * opacity + 12 * (alpha - 0.5)))[..., 0],
            colours=flat((without_white(small) + 0.5 * torch.tanh(rgb)).clamp(0, 1)),
            z=z,
        )


def network_input(
    small: Float[Tensor, "b v 4 height width"],
    occ: Float[Tensor, "b v d height width"],
    dif: Float[Tensor, "b v d height width"],
    o: Float[Tensor, "b v 3"],
    d: Float[Tensor, "b v height width 3"],
) -> Float[Tensor, "b v c height width"]:
    """Return [picture, rays (o x d, d) with |d| = 1, occ, dif], all around -1 to 1."""
    unit = F.normalize(d, dim=-1)
    moment = torch.linalg.cross(o[:, :, None, None].expand_as(d), unit)
    rays = torch.cat([moment, unit], -1).permute(0, 1, 4, 2, 3)
    return torch.cat([small * 2 - 1, rays, occ, 2 * dif], 2)


def without_white(
    small: Float[Tensor, "b v 4 height width"],
) -> Float[Tensor, "b v 3 height width"]:
    """Return the colours of pictures over white with the white taken out."""
    alpha = small[:, :, 3:]
    return ((small[:, :, :3] - (1 - alpha)) / alpha.clamp_min(0.3)).clamp(0, 1)


def flat(maps: Float[Tensor, "b v c height width"]) -> Float[Tensor, "b n c"]:
    """List the pixels of all views."""
    return maps.permute(0, 1, 3, 4, 2).flatten(1, 3)
