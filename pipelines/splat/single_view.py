"""One picture in, Gaussians of the whole object out: a few per pixel, from its front to its back.

After Splatter Image (Szymanowicz, Rupprecht, Vedaldi 2024, arXiv:2312.13150): an image-to-image
network predicts Gaussians along every pixel's ray, with an offset from it. Nothing of an object
lies outside of its silhouette's cone, so a pixel of the object has L Gaussians in its own cone:
  p = softmax(4 residual),   z_1 = sum_i p_i z_i,   z_l = z_1 + t (l - 1) / (L - 1),   t = softplus
  mean_l = z_l d + 0.25 tanh(offset_l),   in the frame of the camera: x right, y down, z forward
The first shows the picture's colours, corrected; the others learn what is behind it.

Differs from the authors' code: depths by a softmax over planes; L Gaussians for a pixel of the
object where theirs lends pixels of the background; one view; 2 million weights, 64 pixels.
"""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor

from skipstep.kernels.full_precision import full_precision
from skipstep.pipelines.splat.cost_volume import PixelGaussians, flat, pixel_rays, without_white
from skipstep.pipelines.splat.unet import ViewUNet

__all__ = ["SingleViewGaussianModel"]

F = torch.nn.functional
# Of one Gaussian: colour, ln scale, quaternion, opacity, offset.
PARTS = [3, 3, 4, 1, 3]
REACH = 0.25
# Untrained: 0.6 from front to back, and so long along the ray that the layers touch.
THICKNESS, LONG = -0.2, 1.3


class SingleViewGaussianModel(ModelMixin, ConfigMixin):  # type: ignore[misc]  # untyped bases
    """A picture to Gaussians in its camera's frame; near and far bound the depth of the front."""

    @register_to_config  # type: ignore[untyped-decorator]  # diffusers is untyped
    def __init__(
        self,
        stride: int = 2,
        planes: int = 32,
        near: float = 1.3,
        far: float = 3.1,
        gaussians_per_pixel: int = 3,
        channels: Sequence[int] = (48, 96, 128),
        heads: int = 4,
        layers: int = 4,
    ) -> None:
        super().__init__()
        outside = planes + 1 + gaussians_per_pixel * sum(PARTS)
        self.unet = ViewUNet(6, outside, channels, heads, layers)

    def forward(
        self, pictures: Float[Tensor, "b 4 height width"], K: Float[Tensor, "b 3 3"]
    ) -> PixelGaussians:
        """Return the Gaussians of pictures (RGB over white and alpha, 0 to 1) with K in pixels.

        Height and width are multiples of 4 times the stride; b scenes of one view each.
        """
        config: Any = self.config
        stride = config.stride
        if any(size % (4 * stride) for size in pictures.shape[-2:]):
            raise ValueError(
                f"pictures of {pictures.shape[-1]} x {pictures.shape[-2]} do not fit: both sizes "
                f"must be multiples of {4 * stride}; resize them and the camera with them"
            )
        small = F.avg_pool2d(pictures, stride)[:, None]
        K = K[:, None] / K.new_tensor([[stride], [stride], [1.0]])
        still = torch.eye(4, device=K.device, dtype=K.dtype).expand(len(K), 1, 4, 4)
        _, d = pixel_rays(still, K, *small.shape[-2:])  # [b, 1, height, width, 3]
        aside = d[..., :2].permute(0, 1, 4, 2, 3)
        raw = self.unet(torch.cat([small * 2 - 1, 2 * aside], 2))
        return self.gaussians(raw.float(), small, K, d)

    @full_precision
    def gaussians(
        self,
        raw: Float[Tensor, "b 1 k height width"],
        small: Float[Tensor, "b 1 4 height width"],
        K: Float[Tensor, "b 1 3 3"],
        d: Float[Tensor, "b 1 height width 3"],
    ) -> PixelGaussians:
        """Turn what the network says into Gaussians."""
        config: Any = self.config
        planes, count = config.planes, config.gaussians_per_pixel
        z_planes = torch.linspace(config.near, config.far, planes, device=raw.device)
        z = torch.einsum("bvdhw,d->bvhw", torch.softmax(4 * raw[:, :, :planes], 2), z_planes)
        thickness = F.softplus(raw[:, :, planes] + THICKNESS)
        alpha, bare = small[:, :, 3:], without_white(small)
        pixel = (z / K[:, :, 0, 0, None, None])[:, :, None]
        made = []
        for layer, part in enumerate(torch.chunk(raw[:, :, planes + 1 :], count, 2)):
            rgb, scale, quat, opacity, offset = torch.split(part, PARTS, 2)
            long = scale.new_tensor([0.0, 0.0, LONG if layer else 0.0])[:, None, None]
            deep = z + thickness * (layer / max(count - 1, 1))
            made.append(
                (
                    flat((d * deep[..., None]).permute(0, 1, 4, 2, 3) + REACH * torch.tanh(offset)),
                    flat(quat) + quat.new_tensor([1.0, 0.0, 0.0, 0.0]),
                    flat(0.45 * pixel * torch.exp((scale + long).clamp(-3, 2.5))),
                    flat(torch.sigmoid(4 * opacity + 12 * (alpha - 0.5)))[..., 0],
                    flat((bare + 0.5 * torch.tanh(rgb)).clamp(0, 1)),
                )
            )
        means, quats, scales, opacities, colours = (
            torch.cat(values, 1) for values in zip(*made, strict=True)
        )
        return PixelGaussians(means, quats, scales, opacities, colours, z=z)
