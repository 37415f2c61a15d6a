"""EfficientNet-Lite0: published shapes, a forward pass written independently, refusals."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from skipstep.pipelines.metrics.efficientnet import (
    DEFAULT_TAPS,
    EfficientNetLite0,
    SameConv2d,
    load_features,
)


@pytest.fixture(scope="module")
def model() -> EfficientNetLite0:
    torch.set_num_threads(1)
    return load_features()


def test_taps_have_strides_2_to_32_and_the_papers_widths(model: EfficientNetLite0) -> None:
    maps, pooled = model.features(torch.zeros(2, 3, 64, 96))
    shapes = [tuple(m.shape) for m in maps]
    expected = [(16, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]
    assert shapes == [(2, *shape) for shape in expected]
    assert pooled.shape == (2, 1280)


def test_first_block_equals_a_forward_pass_written_from_the_raw_weights(
    model: EfficientNetLite0,
) -> None:
    """Stride 2 pads right and below only (TensorFlow SAME on even sizes); BatchNorm eps is 1e-3."""
    w: dict[str, Tensor] = model.state_dict()

    def normalise(x: Tensor, prefix: str) -> Tensor:
        mean, variance = w[f"{prefix}.running_mean"], w[f"{prefix}.running_var"]
        scale = w[f"{prefix}.weight"] / (variance + 1e-3).sqrt()
        return (x - mean[:, None, None]) * scale[:, None, None] + w[f"{prefix}.bias"][:, None, None]

    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = F.conv2d(F.pad(x, (0, 1, 0, 1)), w["stem.0.weight"], stride=2)
    y = normalise(y, "stem.1").clamp(0, 6)
    y = F.conv2d(F.pad(y, (1, 1, 1, 1)), w["blocks.0.depthwise.0.weight"], groups=32)
    y = normalise(y, "blocks.0.depthwise.1").clamp(0, 6)
    y = normalise(F.conv2d(y, w["blocks.0.project.0.weight"]), "blocks.0.project.1")
    torch.testing.assert_close(model.maps(x, (0,))[0], y, rtol=1e-4, atol=1e-4)


def test_maps_stop_at_the_last_tap_and_agree_with_features(model: EfficientNetLite0) -> None:
    x = torch.rand(1, 3, 63, 100) * 2 - 1
    for shallow, full in zip(model.maps(x), model.features(x)[0], strict=True):
        torch.testing.assert_close(shallow, full, rtol=0, atol=0)
    assert len(model.maps(x)) == len(DEFAULT_TAPS)


def test_odd_sizes_are_rounded_up_as_same_padding_does() -> None:
    conv = SameConv2d(1, 1, 3, 2, bias=False)
    assert conv(torch.zeros(1, 1, 63, 100)).shape == (1, 1, 32, 50)


def test_weights_are_real_a_red_disc_and_a_blue_square_are_further_apart_than_noise(
    model: EfficientNetLite0,
) -> None:
    rows, columns = torch.meshgrid(torch.arange(96), torch.arange(96), indexing="ij")
    disc = ((rows - 48) ** 2 + (columns - 48) ** 2 < 900).float()
    square = ((rows - 48).abs().maximum((columns - 48).abs()) < 27).float()
    red = 1 - 2 * disc[None] * torch.tensor([0.1, 0.9, 0.9])[:, None, None]
    blue = 1 - 2 * square[None] * torch.tensor([0.9, 0.7, 0.1])[:, None, None]
    noisy = (red + 0.02 * torch.randn(red.shape, generator=torch.Generator().manual_seed(0))).clamp(
        -1, 1
    )
    a, b, c = model(torch.stack([red, noisy, blue]))
    assert (a - b).norm() < 0.8 * (a - c).norm()


def test_unknown_taps_are_refused_with_the_range(model: EfficientNetLite0) -> None:
    with pytest.raises(ValueError, match=r"taps \[16\] given, but blocks are numbered 0 to 15"):
        model.maps(torch.zeros(1, 3, 32, 32), (0, 16))
