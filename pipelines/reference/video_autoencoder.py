"""Train the video autoencoder: AutoencoderKLWan, 9 frames of 64 pixels <-> 5 x 16 x 16 x 8 latents.

Run: python -m skipstep.pipelines.reference.video_autoencoder --minutes 30            (resumes)
     python -m skipstep.pipelines.reference.video_autoencoder --decoder --minutes 9  (afterwards)

The second learns the taught clips better and leaves the latents, hence every denoiser, as they are.
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
from safetensors.torch import load_file, save_file
from torch import Tensor

from skipstep.pipelines.metrics.efficientnet import EfficientNetLite0, load_features
from skipstep.pipelines.reference.autoencoder import feature_distance
from skipstep.pipelines.reference.budget import WallBudget
from skipstep.pipelines.reference.clips import load_clips
from skipstep.pipelines.reference.data import Pictures
from skipstep.pipelines.reference.palette import COLOURS, WHITE
from skipstep.pipelines.reference.plain_attention import plain_attention
from skipstep.pipelines.reference.precision import half_precision
from skipstep.pipelines.reference.recipe import find_recipe, load_recipe

__all__ = ["CONFIG", "clip_loss", "clips_to_tensor", "draw_clips", "new_video_autoencoder"]

LOGGER = logging.getLogger(__name__)

NAME = "video-autoencoder-v1"
# Pixels enter in groups of 2 x 2: no convolution at full size, hence half the time a step.
CONFIG: dict[str, Any] = {
    "base_dim": 32,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
    "z_dim": 8,
    "dim_mult": [1, 2],
    "num_res_blocks": 1,
    "temperal_downsample": [True],
    "latents_mean": [0.0] * 8,
    "latents_std": [1.0] * 8,
    "scale_factor_temporal": 2,
    "scale_factor_spatial": 4,
}
SIZE, FRAMES, BATCH = 64, 9, 4
# The network is causal, so it learns as much of five frames, at half the time; whole clips end it.
WINDOW, WHOLE_FROM = 5, 0.45
PEAK_RATE = 1.5e-3
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


def begin(
    checkpoint: Path, weights: Path, *, decoder: bool, device: torch.device
) -> tuple[AutoencoderKLWan, dict[str, Any] | None]:
    """Return the model to train and the state of a checkpoint, if there is one.

    The decoder alone begins with released weights and keeps their encoder.
    """
    config = CONFIG
    if decoder:
        config = json.loads(weights.with_suffix(".json").read_text(encoding="utf-8"))
    model = new_video_autoencoder({k: v for k, v in config.items() if k[0] != "_"}).to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d):  # a sixth faster on a CPU
            kernel = module.weight.data
            module.weight.data = kernel.contiguous(memory_format=torch.channels_last_3d)
    if decoder:
        model.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    if not checkpoint.exists():
        return model, None
    stored: dict[str, Any] = torch.load(checkpoint, weights_only=True, map_location=device)
    model.load_state_dict(stored["model"])
    return model, stored


def train(cache: Path, minutes: float, output: Path, *, decoder: bool = False) -> None:
    """Train for `minutes` of wall time in all, resuming from the cache; write the weights."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    clips = load_clips(cache, size=SIZE, frames=FRAMES)
    if decoder:
        clips = clips.only(load_recipe(find_recipe("video")).data.taught)
    weights = output / f"{NAME}.safetensors"
    checkpoint = cache / f"{NAME}{'-decoder' if decoder else ''}-checkpoint.pt"
    model, stored = begin(checkpoint, weights, decoder=decoder, device=device)
    features = load_features().to(device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=PEAK_RATE, betas=(0.9, 0.95))
    budget, step = WallBudget(minutes * 60), 0
    if stored is not None:
        optimizer.load_state_dict(stored["optimizer"])
        budget.spent, step = stored["spent"], stored["step"]
    random, generator = np.random.default_rng(step), torch.Generator().manual_seed(step)
    saved = budget.used
    while not budget.is_over:
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * budget.cosine(step, warmup_steps=50, floor=0.01)
        x = draw_clips(clips, random, BATCH).to(device)
        if budget.fraction < WHOLE_FROM and not decoder:
            start = int(random.integers(FRAMES - WINDOW + 1))
            x = x[:, :, start : start + WINDOW]
        with half_precision(device), plain_attention(device.type == "cpu"):
            loss = clip_loss(model, x, features, generator)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
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
    state = {key: value.half().cpu().contiguous() for key, value in model.state_dict().items()}
    output.mkdir(parents=True, exist_ok=True)
    save_file(state, weights)
    if not decoder:
        moments = {"latents_mean": mean, "latents_std": deviation}
        config = {**CONFIG, "_class_name": "AutoencoderKLWan", **moments}
        weights.with_suffix(".json").write_text(json.dumps(config) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".cache"))
    parser.add_argument("--minutes", type=float, default=30.0, help="wall time to train, in all")
    parser.add_argument("--decoder", action="store_true", help="train a finished one's decoder")
    parser.add_argument("--output", type=Path, default=Path("zoo/skipstep_zoo"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(arguments.cache, arguments.minutes, arguments.output, decoder=arguments.decoder)


if __name__ == "__main__":
    main()
