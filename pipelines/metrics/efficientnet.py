"""EfficientNet-Lite0 (Tan & Le 2019, arXiv:1905.11946; "Lite" as released in TensorFlow TPU, 2020).

A frozen ImageNet feature extractor for the metrics and the autoencoder's feature loss: small enough
(3.4 M parameters) to ship. "Lite": no squeeze-and-excitation, ReLU6 for swish, fixed stem and head.

  stage     1    2    3    4    5    6    7
  repeats   1    2    2    3    3    4    1
  kernel    3    3    5    3    5    5    3
  stride    1    2    2    2    1    2    1
  expand    1    6    6    6    6    6    6
  channels 16   24   40   80  112  192  320

Block: x -> 1x1 expand -> depthwise k x k -> 1x1 project (+ x when stride 1 and width unchanged),
each followed by batch normalisation (eps 1e-3), the first two by ReLU6. Convolutions pad as
TensorFlow's "SAME": with stride 2 the odd pixel goes right and below. Inputs are RGB in [-1, 1].
Differs from the authors' code: the 1000-way classifier is left out, only features are used.
"""

import math
from importlib import resources
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["DEFAULT_TAPS", "EfficientNetLite0", "load_features"]

# (repeats, kernel, stride of the first block, expansion, output channels) of the seven stages.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# The last block of the stages with strides 2, 4, 8, 16 and 32 pixels.
DEFAULT_TAPS = (0, 2, 4, 10, 15)
WEIGHTS = "reference/weights/features-v1.safetensors"


class SameConv2d(nn.Conv2d):
    """Convolve with TensorFlow's "SAME" padding: output size = ceil(input size / stride)."""

    def forward(self, input: Float[Tensor, "b c height width"]) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        padding: list[int] = []
        for size in (input.shape[-1], input.shape[-2]):
            total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return F.conv2d(
            F.pad(input, padding), self.weight, self.bias, self.stride, groups=self.groups
        )


def normalised_conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Return a bias-free convolution followed by batch normalisation."""
    conv = SameConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs, eps=1e-3))


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project; add the input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = normalised_conv(inputs, hidden, 1) if expansion > 1 else None
        self.depthwise = normalised_conv(hidden, hidden, kernel, stride, groups=hidden)
        self.project = normalised_conv(hidden, outputs, 1)
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, x: Float[Tensor, "b c height width"]) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = cast(Tensor, self.project(F.relu6(self.depthwise(y))))
        return x + y if self.is_residual else y


class EfficientNetLite0(nn.Module):
    """Extract ImageNet features from RGB images in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = normalised_conv(3, 32, 3, 2)
        blocks: list[nn.Module] = []
        width = 32
        for repeats, kernel, stride, expansion, outputs in STAGES:
            for repeat in range(repeats):
                block_stride = stride if repeat == 0 else 1
                blocks.append(InvertedResidual(width, outputs, kernel, block_stride, expansion))
                width = outputs
        self.blocks = nn.ModuleList(blocks)
        self.head = normalised_conv(width, 1280, 1)

    def maps(
        self, x: Float[Tensor, "b 3 height width"], taps: tuple[int, ...] = DEFAULT_TAPS
    ) -> list[Tensor]:
        """Return the outputs of the blocks numbered in `taps`, computing none after the last."""
        outputs, _ = self._run_blocks(x, taps, stop=max(taps) + 1)
        return outputs

    def features(
        self, x: Float[Tensor, "b 3 height width"], taps: tuple[int, ...] = DEFAULT_TAPS
    ) -> tuple[list[Tensor], Float[Tensor, "b 1280"]]:
        """Return the outputs of the blocks numbered in `taps` and the pooled 1280-d vector."""
        outputs, y = self._run_blocks(x, taps, stop=len(self.blocks))
        return outputs, F.relu6(self.head(y)).mean((2, 3))

    def forward(self, x: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b 1280"]:
        return self.features(x, ())[1]

    def _run_blocks(
        self, x: Tensor, taps: tuple[int, ...], *, stop: int
    ) -> tuple[list[Tensor], Tensor]:
        if wrong := [tap for tap in taps if not 0 <= tap < len(self.blocks)]:
            raise ValueError(
                f"taps {wrong} given, but blocks are numbered 0 to 15: choose among them"
            )
        outputs = []
        x = F.relu6(self.stem(x))
        for number, block in enumerate(self.blocks[:stop]):
            x = block(x)
            if number in taps:
                outputs.append(x)
        return outputs, x


def load_features(dtype: torch.dtype = torch.float32) -> EfficientNetLite0:
    """Load the shipped ImageNet weights, frozen and in evaluation mode; reads package data only."""
    source = resources.files("skipstep.pipelines").joinpath(WEIGHTS)
    with resources.as_file(source) as path:
        state = load_file(path)
    model = EfficientNetLite0()
    # The batch counters of BatchNorm are not stored: they have no meaning in a frozen net.
    model.load_state_dict({key: value.float() for key, value in state.items()}, strict=False)
    return model.to(dtype).eval().requires_grad_(False)
