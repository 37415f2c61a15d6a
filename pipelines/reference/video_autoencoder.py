"""Train the video autoencoder: AutoencoderKLWan, 9 frames of 64 pixels <-> 5 x 16 x 16 x 8 latents.

Run: python -m skipstep.pipelines.reference.video_autoencoder --minutes 8        (resumes; a GPU)

Loss on whole clips x on random backgrounds, y = decode(z), z = mean + deviation * noise:
  L = |y - x| + 2 (y - x)^2 + 0.1 * feature distance of one frame + 1e-4 KL(z, N(0, 1))
The pipeline scales latents by their mean and deviation per channel, measured at the end.
Differs from the authors' code: 0.8 M parameters; no adversary, which so small a model does not need
for flat shading.
"""

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from skipstep.pipelines.metrics.efficientnet import EfficientNetLite0, load_features
from skipstep.pipelines.reference.autoencoder import feature_distance
from skipstep.pipelines.reference.budget import WallBudget
from skipstep.pipelines.reference.clips import load_clips
from skipstep.pipelines.reference.data import Pictures
from skipstep.pipelines.reference.palette import COLOURS, WHITE
from skipstep.pipelines.reference.precision import half_precision

__all__ = ["CONFIG", "clip_loss", "clips_to_tensor", "draw_clips", "new_video_autoencoder"]

LOGGER = logging.getLogger(__name__)

NAME = "video-autoencoder-v1"
CONFIG: dict[str, Any] = {
    "base_dim": 16,
    "z_dim": 8,
    "dim_mult": [1, 2, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "latents_mean": [0.0] * 8,
    "latents_std": [1.0] * 8,
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 4,
}
SIZE, FRAMES, BATCH = 64, 9, 16
PEAK_RATE = 1e-3
CHECKPOINT_SECONDS = 120


def new_video_autoencoder(config: dict[str, Any] = CONFIG) -> AutoencoderKLWan:
    """Return the untrained autoencoder."""
    return AutoencoderKLWan(**config)


def draw_clips(
    clips: Pictures, random: np.random.Generator, count: int
) -> Float[Tensor, "b 3 f height width"]:
    """Return random clips on random backgrounds, mirrored half of the time, in [-1, 1]."""
    colours = [WHITE, *COLOURS.values()]
    batch = []
    for _ in range(count):
        clip = clips.composite(
            int(random.integers(len(clips.names))), colours[random.integers(len(colours))]
        )
        batch.append(clip[:, :, ::-1] if random.random() < 0.5 else clip)
    return clips_to_tensor(np.stack(batch))


def clips_to_tensor(
    pixels: np.typing.NDArray[np.float32],
) -> Float[Tensor, "b 3 f height width"]:
    """Return clips [b, f, height, width, 3] in [0, 255] as tensors in [-1, 1]."""
    return torch.from_numpy(pixels / np.float32(127.5) - 1).permute(0, 4, 1, 2, 3).contiguous()


def clip_loss(
    model: AutoencoderKLWan,
    x: Float[Tensor, "b 3 f height width"],
    features: EfficientNetLite0,
    generator: torch.Generator,
) -> Float[Tensor, ""]:
    """Return the training loss of the module docstring."""
    posterior = model.encode(x).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(x.device)
    y = model.decode(posterior.mean + posterior.std * noise).sample
    frame = int(torch.randint(x.shape[2], (), generator=generator))
    distance = feature_distance(features, x[:, :, frame], y[:, :, frame])
    squared = (y - x).pow(2).mean()
    kl = 0.5 * (posterior.mean.pow(2) + posterior.var - 1 - posterior.logvar).mean()
    loss: Tensor = (y - x).abs().mean() + 2 * squared + 0.1 * distance + 1e-4 * kl
    return loss


@torch.no_grad()
def latent_moments(
    model: AutoencoderKLWan, clips: Pictures, device: torch.device
) -> tuple[list[float], list[float], float]:
    """Return mean and deviation of each latent channel over the clips, and the mean PSNR in dB."""
    random = np.random.default_rng(1)
    x = draw_clips(clips, random, 64).to(device)
    latents, ratios = [], []
    for part in torch.split(x, 8):
        z = model.encode(part).latent_dist.mean
        y = model.decode(z).sample.clamp(-1, 1)
        ratios.append(10 * torch.log10(4 / (y - part).pow(2).mean((1, 2, 3, 4))))
        latents.append(z)
    z = torch.cat(latents)
    mean, deviation = z.mean((0, 2, 3, 4)), z.std((0, 2, 3, 4))
    return mean.tolist(), deviation.tolist(), torch.cat(ratios).mean().item()


def train(cache: Path, minutes: float, output: Path) -> None:
    """Train for `minutes` of wall time in all, resuming from the cache; write the weights."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips = load_clips(cache, size=SIZE, frames=FRAMES)
    model, features = new_video_autoencoder().to(device), load_features().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95))
    budget, step = WallBudget(minutes * 60), 0
    checkpoint = cache / f"{NAME}-checkpoint.pt"
    if checkpoint.exists():
        stored = torch.load(checkpoint, weights_only=True, map_location=device)
        model.load_state_dict(stored["model"])
        optimizer.load_state_dict(stored["optimizer"])
        budget.spent, step = stored["spent"], stored["step"]
    random, generator = np.random.default_rng(step), torch.Generator().manual_seed(step)
    saved = budget.used
    while not budget.is_over:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * budget.cosine(step, warmup_steps=50, floor=0.01)
        x = draw_clips(clips, random, BATCH).to(device)
        with half_precision(device):
            loss = clip_loss(model, x, features, generator)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 50 == 0:
            LOGGER.info("step %d, %.0f s, loss %.4f", step, budget.used, loss.item())
        if budget.used - saved > CHECKPOINT_SECONDS or budget.is_over:
            saved = budget.used
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "spent": saved, "step": step}, checkpoint)
    mean, deviation, ratio = latent_moments(model.eval(), clips, device)
    LOGGER.info("%.1f dB", ratio)
    config = {
        **CONFIG,
        "_class_name": "AutoencoderKLWan",
        "latents_mean": mean,
        "latents_std": deviation,
    }
    state = {key: value.half().cpu().contiguous() for key, value in model.state_dict().items()}
    output.mkdir(parents=True, exist_ok=True)
    save_file(state, output / f"{NAME}.safetensors")
    (output / f"{NAME}.json").write_text(json.dumps(config) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--minutes", type=float, default=8.0, help="wall time to train, in all")
    parser.add_argument("--output", type=Path, default=Path("zoo/skipstep_zoo"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(arguments.cache, arguments.minutes, arguments.output)


if __name__ == "__main__":
    main()
