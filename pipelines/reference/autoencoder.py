"""Train the reference autoencoder: AutoencoderTiny, 128 x 128 pixels <-> 16 x 16 x 16 latents.

Run: python -m skipstep.pipelines.reference.autoencoder --minutes 19   (stop and start it as you
like)

Loss on random 64-pixel crops and whole pictures, x target, y = decode(z + 0.1 eps), z = encode(x):
  L = |y - x| + 2 (y - x)^2 + 0.1 * feature distance (EfficientNet-Lite0, normalised)
    + 0.05 (mean_c(z)^2 + (std(z) - 1)^2)
The noise makes the decoder forgive the denoiser's small errors; the last term puts latents near
zero mean and unit standard deviation (the pipeline knows one scaling factor and no shift).
"""

import argparse
import json
import logging
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from skipstep.pipelines.metrics.efficientnet import EfficientNetLite0, load_features
from skipstep.pipelines.reference.budget import WallBudget
from skipstep.pipelines.reference.captions import STYLES, held_out_style
from skipstep.pipelines.reference.data import Pictures, load_pictures
from skipstep.pipelines.reference.palette import COLOURS, WHITE
from skipstep.pipelines.reference.threads import CoreFollower

__all__ = ["CONFIG", "feature_distance", "new_autoencoder", "reconstruction_loss", "to_tensor"]

LOGGER = logging.getLogger(__name__)

CONFIG = {
    "latent_channels": 16,
    "encoder_block_out_channels": (32, 32, 32, 32),
    "decoder_block_out_channels": (64, 64, 64, 64),
    "num_encoder_blocks": (1, 1, 1, 1),
    "num_decoder_blocks": (3, 3, 2, 1),
}
PEAK_RATE = 1.5e-3
CROP = 64
CROPS_PER_BATCH = 16
NOISE = 0.1


def new_autoencoder() -> AutoencoderTiny:
    """Return the untrained autoencoder in the memory layout that CPU convolutions prefer.

    Convolutions start with He et al.'s (2015) gain, the last of each residual block at a tenth of
    it, so that the signal neither fades nor explodes in a net without normalisation; pictures start
    as mid-grey.
    """
    model = AutoencoderTiny(**CONFIG)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, AutoencoderTinyBlock):
            module.conv[-1].weight.data.mul_(0.1)
    model.decoder.layers[-1].weight.data.mul_(0.1)
    torch.nn.init.constant_(model.decoder.layers[-1].bias, 0.5)
    return model.to(memory_format=torch.channels_last)


def to_tensor(pixels: np.typing.NDArray[np.float32]) -> Float[Tensor, "b 3 height width"]:
    """Return pictures [b, height, width, 3] in [0, 255] as channels-last tensors in [-1, 1]."""
    x = torch.from_numpy(pixels / np.float32(127.5) - 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


def feature_distance(
    features: EfficientNetLite0,
    x: Float[Tensor, "b 3 height width"],
    y: Float[Tensor, "b 3 height width"],
) -> Float[Tensor, ""]:
    """Return the mean squared distance of normalised feature maps; gradients flow to `y` alone."""
    taps = (0, 2, 4)
    with torch.no_grad():
        maps_x = features.maps(x, taps)
    maps_y = features.maps(y, taps)
    return torch.stack(
        [
            (F.normalize(a.float(), dim=1) - F.normalize(b.float(), dim=1)).pow(2).sum(1).mean()
            for a, b in zip(maps_x, maps_y, strict=True)
        ]
    ).mean()


def reconstruction_loss(
    x: Float[Tensor, "b 3 height width"],
    y: Float[Tensor, "b 3 height width"],
    z: Float[Tensor, "b 16 h w"],
    features: EfficientNetLite0,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return the training loss of the module docstring and the mean squared error inside it."""
    y, z = y.float(), z.float()
    squared = (y - x).pow(2).mean()
    distance = feature_distance(features, x, y)
    centred = z.mean((0, 2, 3)).pow(2).mean() + (z.std() - 1).pow(2)
    return (y - x).abs().mean() + 2 * squared + 0.1 * distance + 0.05 * centred, squared


def draw_batch(
    styles: list[Pictures], random: np.random.Generator, *, whole: bool
) -> Float[Tensor, "b 3 height width"]:
    """Return random pictures on random palette colours: 16 crops, or 4 whole ones."""
    colours = [WHITE, *COLOURS.values()]
    count = CROPS_PER_BATCH // 4 if whole else CROPS_PER_BATCH
    batch = []
    for _ in range(count):
        pictures = styles[random.integers(len(styles))]
        row = int(random.integers(len(pictures.names)))
        # Three in ten on white, the rest uniform, so that every colour is well known.
        colour = WHITE if random.random() < 0.3 else colours[random.integers(len(colours))]
        picture = pictures.composite(row, colour)
        if random.random() < 0.5:
            picture = picture[:, ::-1]
        top, left = (0, 0) if whole else random.integers(0, picture.shape[0] - CROP + 1, 2)
        size = picture.shape[0] if whole else CROP
        batch.append(picture[top : top + size, left : left + size])
    return to_tensor(np.stack(batch))


@torch.no_grad()
def measure(model: AutoencoderTiny, styles: list[Pictures]) -> dict[str, float]:
    """Return the mean PSNR in dB on never-trained pictures at 128 pixels and latent moments."""
    random = np.random.default_rng(1)
    colours = [WHITE, *COLOURS.values()]
    ratios, latents = [], []
    for pictures in styles:
        rows = random.permutation(len(pictures.names))[:64]
        x = to_tensor(
            np.stack(
                [pictures.composite(int(r), colours[random.integers(len(colours))]) for r in rows]
            )
        )
        z = model.encode(x).latents
        y = model.decode(z).sample.clamp(-1, 1)
        ratios.append(10 * torch.log10(4 / (y - x).pow(2).mean((1, 2, 3))))
        latents.append(z)
    z, ratio = torch.cat(latents), torch.cat(ratios)
    return {
        "psnr_db": ratio.mean().item(),
        "psnr_lowest_db": ratio.min().item(),
        "latent_mean": z.mean().item(),
        "latent_std": z.std().item(),
        "latent_largest_channel_mean": z.mean((0, 2, 3)).abs().max().item(),
        "latent_smallest_channel_std": z.std((0, 2, 3)).min().item(),
    }


def split(styles: tuple[str, ...], cache: Path) -> tuple[list[Pictures], list[Pictures]]:
    """Return training and test pictures of each style; test pictures are the held-out pairs."""
    train: list[Pictures] = []
    test: list[Pictures] = []
    for style in styles:
        pictures = load_pictures(style, cache, taught_only=False)
        held = np.array([held_out_style(name) == style for name in pictures.names])
        for chosen, rows in ((train, np.flatnonzero(~held)), (test, np.flatnonzero(held))):
            chosen.append(Pictures([pictures.names[r] for r in rows], pictures.pixels[rows]))
    return train, test


def train(cache: Path, minutes: float, output: Path) -> None:
    """Train for `minutes` of wall time in all, resuming from the cache; write the weights."""
    torch.manual_seed(0)
    train_styles, test_styles = split(STYLES, cache)
    model, features = new_autoencoder(), load_features()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=1e-4
    )
    budget, step = WallBudget(minutes * 60), 0
    checkpoint = cache / "autoencoder-checkpoint.pt"
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        budget.spent, step = stored["spent"], stored["step"]
    random = np.random.default_rng(step)
    follower = CoreFollower()
    saved = budget.used
    while not budget.is_over:
        rate = PEAK_RATE * budget.cosine(step, warmup_steps=50, floor=0.005)
        for group in optimizer.param_groups:
            group["lr"] = rate
        x = draw_batch(train_styles, random, whole=random.random() < 0.3)
        z = model.encoder(x)
        y = model.decoder(z + NOISE * torch.randn_like(z))
        loss, squared = reconstruction_loss(x, y, z, features)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        follower.adjust()
        step += 1
        if step % 100 == 0:
            psnr = 10 * math.log10(4 / squared.item())
            LOGGER.info(
                "step %d, %.0f s, loss %.4f, %.1f dB, %d threads",
                step,
                budget.used,
                loss.item(),
                psnr,
                follower.count,
            )
        if budget.used - saved > 300 or budget.is_over:
            saved = budget.used
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "spent": saved, "step": step}, checkpoint)
            LOGGER.info("test: %s", measure(model, test_styles))
    figures = measure(model.eval(), test_styles)
    LOGGER.info("test: %s", figures)
    config = {**CONFIG, "scaling_factor": round(1 / figures["latent_std"], 4)}
    state = {key: value.half().contiguous() for key, value in model.state_dict().items()}
    save_file(state, output / "autoencoder-v1.safetensors")
    (output / "autoencoder-v1.json").write_text(json.dumps(config) + "\n", encoding="utf-8")
    (cache / "autoencoder-figures.json").write_text(json.dumps(figures) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--minutes", type=float, default=19.0, help="wall time to train, in all")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("weights"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(arguments.cache, arguments.minutes, arguments.output)


if __name__ == "__main__":
    main()
