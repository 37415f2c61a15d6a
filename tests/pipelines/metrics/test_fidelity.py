"""PSNR, SSIM and the feature distance against closed forms, naive loops and their stated limits."""

import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from skipstep.pipelines.metrics.efficientnet import DEFAULT_TAPS, EfficientNetLite0
from skipstep.pipelines.metrics.fidelity import feature_distance, psnr, ssim


@pytest.fixture(scope="module")
def network() -> EfficientNetLite0:
    torch.manual_seed(0)
    return EfficientNetLite0().eval().requires_grad_(False)


def pictures(count: int, height: int = 33, width: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, height, width, generator=generator) * 2 - 1


def test_psnr_of_a_constant_offset_is_its_closed_form() -> None:
    x = pictures(3)
    offsets = torch.tensor([0.02, 0.2, 2.0])
    expected = 20 * torch.log10(2 / offsets)
    torch.testing.assert_close(
        psnr(x, x + offsets.view(-1, 1, 1, 1)), expected, rtol=1e-4, atol=1e-3
    )


def test_identity_gives_infinite_psnr_ssim_1_and_distance_0(network: EfficientNetLite0) -> None:
    x = pictures(2)
    assert psnr(x, x.clone()).tolist() == [math.inf, math.inf]
    torch.testing.assert_close(ssim(x, x.clone()), torch.ones(2))
    assert feature_distance(x, x.clone(), model=network).tolist() == [0.0, 0.0]


def test_psnr_of_a_clip_takes_the_error_over_all_its_frames() -> None:
    x = torch.zeros(1, 4, 3, 8, 8)
    y = x.clone()
    y[:, 0] = 0.4
    expected = 10 * math.log10(4 / (0.4**2 / 4))
    torch.testing.assert_close(psnr(x, y), torch.tensor([expected]))


def naive_ssim(x: Tensor, y: Tensor) -> float:
    """Follow Wang et al. 2004, Eq. (13), pixel by pixel; borders reflected."""
    offsets = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = torch.outer(line, line) / line.sum() ** 2
    values = []
    for a, b in zip((x + 1) / 2, (y + 1) / 2, strict=True):
        a = torch.nn.functional.pad(a.double()[None], (5, 5, 5, 5), mode="reflect")[0]
        b = torch.nn.functional.pad(b.double()[None], (5, 5, 5, 5), mode="reflect")[0]
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                p = a[row : row + 11, column : column + 11]
                q = b[row : row + 11, column : column + 11]
                mean_p, mean_q = (window * p).sum(), (window * q).sum()
                var_p = (window * (p - mean_p) ** 2).sum()
                var_q = (window * (q - mean_q) ** 2).sum()
                cov = (window * (p - mean_p) * (q - mean_q)).sum()
                luminance = (2 * mean_p * mean_q + 1e-4) / (mean_p**2 + mean_q**2 + 1e-4)
                values.append(luminance * (2 * cov + 9e-4) / (var_p + var_q + 9e-4))
    return float(torch.stack(values).mean())


def test_ssim_equals_a_naive_loop_over_the_paper_s_equation() -> None:
    x = pictures(2, 13, 17)
    y = (x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)
    expected = torch.tensor([naive_ssim(a, b) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(ssim(x, y), expected, rtol=0, atol=1e-5)


def test_ssim_needs_no_torchvision() -> None:
    code = (
        "import sys; sys.modules['torchvision'] = None; import torch;"
        "from skipstep.pipelines.metrics.fidelity import ssim;"
        "x = torch.rand(1, 3, 16, 16); print(float(ssim(x, x)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) == pytest.approx(1.0)


def test_feature_distance_equals_a_naive_loop_over_taps(network: EfficientNetLite0) -> None:
    x, y = pictures(2, seed=1), pictures(2, seed=2)
    expected = torch.zeros(2)
    for a, b in zip(network.maps(x), network.maps(y), strict=True):
        for sample in range(2):
            error = 0.0
            for row in range(a.shape[2]):
                for column in range(a.shape[3]):
                    f, g = a[sample, :, row, column], b[sample, :, row, column]
                    error += float((f / f.norm() - g / g.norm()).square().sum())
            expected[sample] += error / (a.shape[2] * a.shape[3]) / len(DEFAULT_TAPS)
    torch.testing.assert_close(
        feature_distance(x, y, model=network), expected, rtol=1e-4, atol=1e-5
    )


def test_a_sample_does_not_depend_on_its_batch_neighbours(network: EfficientNetLite0) -> None:
    x, y = pictures(3, seed=1), pictures(3, seed=2)
    for measure in (psnr, ssim, lambda a, b: feature_distance(a, b, model=network)):
        together = measure(x, y)
        alone = torch.cat([measure(x[i : i + 1], y[i : i + 1]) for i in range(3)])
        assert together.shape == (3,)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_pictures_of_different_shapes_are_refused_in_words() -> None:
    for measure in (psnr, ssim, feature_distance):
        with pytest.raises(
            ValueError, match=r"pictures of shapes \(1, 3, 16, 16\) and \(1, 3, 16, 18\)"
        ):
            measure(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 18))


def test_ssim_says_which_size_it_needs() -> None:
    with pytest.raises(
        ValueError, match="SSIM of 10 x 40 pictures: its window needs at least 11 x 11"
    ):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))
