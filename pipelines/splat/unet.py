"""The network of both reconstructors: a U-Net on every view, attention among all views' tokens.

Ronneberger et al. 2015 (arXiv:1505.04597) with the cross-view attention of LGM (Tang et al. 2024,
arXiv:2402.05054) at its bottom. Every view is encoded alone, so its tokens can be kept, compressed
or exchanged between `encode` and `decode`: view compression works there.
Differs from LGM's code: attention at the lowest resolution alone, 2 million weights.
"""

from collections.abc import Sequence

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["ViewUNet"]

F = nn.functional


class ViewUNet(nn.Module):
    """Map [b, v, inside, height, width] to [b, v, outside, height, width]; sizes divide by 4."""

    def __init__(
        self, inside: int, outside: int, channels: Sequence[int], heads: int, layers: int
    ) -> None:
        super().__init__()
        fine, middle, coarse = channels
        self.enter = nn.Conv2d(inside, fine, 3, padding=1)
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
        self.leave = nn.Conv2d(fine, outside, 3, padding=1)
        # An untrained network changes nothing: its model is the prior itself.
        nn.init.normal_(self.leave.weight, std=1e-3)
        nn.init.constant_(self.leave.get_parameter("bias"), 0.0)

    def forward(
        self, x: Float[Tensor, "b v c height width"]
    ) -> Float[Tensor, "b v k height width"]:
        """Encode every view, fuse all of them, decode every view."""
        tokens, skips = self.encode(x)
        return self.decode(self.fuse(tokens), skips)

    def encode(
        self, x: Float[Tensor, "b v c height width"]
    ) -> tuple[Float[Tensor, "b v s d"], tuple[Tensor, Tensor]]:
        """Return the tokens of every view and what its decoder takes from its encoder."""
        b, v = x.shape[:2]
        fine = self.fine_in(self.enter(x.flatten(0, 1)), None)
        middle = self.middle_in(self.down_middle(fine), None)
        coarse = self.coarse_in(self.down_coarse(middle), None)
        tokens = coarse.flatten(2).mT.reshape(b, v, -1, coarse.shape[1])
        return tokens, (
            fine.reshape(b, v, *fine.shape[1:]),
            middle.reshape(b, v, *middle.shape[1:]),
        )

    def fuse(self, tokens: Float[Tensor, "b v s d"]) -> Float[Tensor, "b v s d"]:
        """Let all tokens of all views attend to each other."""
        fused = tokens.flatten(1, 2)
        for block in self.transformer_blocks:
            fused = block(fused)
        return fused.reshape(tokens.shape)

    def decode(
        self, tokens: Float[Tensor, "b v s d"], skips: tuple[Tensor, Tensor]
    ) -> Float[Tensor, "b v k height width"]:
        """Return the maps of every view."""
        b, v = tokens.shape[:2]
        fine, middle = (skip.flatten(0, 1) for skip in skips)
        height, width = middle.shape[-2] // 2, middle.shape[-1] // 2
        coarse = tokens.flatten(0, 1).mT.reshape(b * v, -1, height, width)
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
