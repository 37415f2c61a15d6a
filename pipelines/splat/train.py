"""Train the shipped reconstructor on procedural objects; it goes on from its last checkpoint.

Run: python -m skipstep.pipelines.splat.train --minutes 60
Each step takes BATCH objects, 2 to 6 pictures of each as input, and 3 views as targets:
  L = mean |rgb - rgb*|^2 + 0.3 mean |alpha - alpha*|^2 + 0.05 mean |z - z*| where alpha* is set
AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101), cosine in wall time; what is shipped is the
running average of the weights in float16. Objects are mirrored and their colours permuted.
"""

import argparse
import itertools
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from skipstep.kernels.gs_project import project_gaussians
from skipstep.kernels.gs_raster import rasterize_gaussians
from skipstep.pipelines.reference.budget import WallBudget
from skipstep.pipelines.splat.cost_volume import CostVolumeGaussianModel, PixelGaussians
from skipstep.pipelines.splat.examples import HELD_OUT, INPUTS, SIZE, Examples, load_examples

__all__ = ["evaluate", "render_targets", "train"]

LOGGER = logging.getLogger(__name__)

BATCH, TARGETS = 4, 3
# How often 2, 3, ... pictures are given.
VIEW_CHANCES = {2: 0.15, 3: 0.2, 4: 0.4, 5: 0.1, 6: 0.15}
RATE = 1e-3
EMA_LIMIT = 0.998
CHECKPOINT_SECONDS, LOG_STEPS = 240, 50
ORDERS = list(itertools.permutations(range(3)))


def render_targets(
    gaussians: PixelGaussians, w2c: Float[Tensor, "b v 4 4"], K: Float[Tensor, "3 3"]
) -> tuple[Float[Tensor, "b v height width 3"], Float[Tensor, "b v height width"]]:
    """Render every scene of a batch in its own views, on white, in one call."""
    b, v = w2c.shape[:2]
    projected = [
        project_gaussians(
            gaussians.means[scene],
            gaussians.quats[scene],
            gaussians.scales[scene],
            w2c[scene],
            K.expand(v, 3, 3),
            width=SIZE,
            height=SIZE,
        )
        for scene in range(b)
    ]
    means2d, conics, depths = (torch.cat(parts) for parts in zip(*projected, strict=True))
    image, alpha = rasterize_gaussians(
        means2d,
        conics,
        depths,
        gaussians.opacities.repeat_interleave(v, 0),
        gaussians.colours.repeat_interleave(v, 0),
        width=SIZE,
        height=SIZE,
        background=image_white(gaussians.colours),
    )
    return image.reshape(b, v, *image.shape[1:]), alpha.reshape(b, v, *alpha.shape[1:])


def image_white(like: Tensor) -> Float[Tensor, " 3"]:
    """Return white on the device of a tensor."""
    return torch.ones(3, device=like.device)


def draw_batch(
    examples: Examples, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Draw inputs (pictures, depths, poses) and targets (pictures, poses), and K."""
    chances = torch.tensor(list(VIEW_CHANCES.values()))
    views = list(VIEW_CHANCES)[int(torch.multinomial(chances, 1, generator=generator))]
    chosen = torch.randint(len(examples), (BATCH,), generator=generator)
    pictures = examples.pictures[chosen].float() / 255
    depths, w2c = examples.depths[chosen].float(), examples.w2c[chosen]
    order = ORDERS[int(torch.randint(len(ORDERS), (), generator=generator))]
    pictures = pictures[:, :, [*order, 3]]
    if torch.rand((), generator=generator) < 0.5:
        mirror = torch.diag(torch.tensor([-1.0, 1.0, 1.0, 1.0]))
        pictures, depths, w2c = pictures.flip(-1), depths.flip(-1), mirror @ w2c @ mirror
    novel = INPUTS + torch.randperm(w2c.shape[1] - INPUTS, generator=generator)
    inputs = torch.cat([torch.randperm(INPUTS, generator=generator), novel])[:views]
    targets = torch.randperm(w2c.shape[1], generator=generator)[:TARGETS]
    return (
        pictures[:, inputs],
        depths[:, inputs],
        w2c[:, inputs],
        pictures[:, targets],
        w2c[:, targets],
        examples.K,
    )


def loss_of(model: Any, batch: tuple[Tensor, ...]) -> Tensor:
    """Return L of the module's docstring."""
    pictures, depths, w2c, wanted, target_w2c, K = batch
    gaussians = model(pictures, w2c, K.expand(*w2c.shape[:2], 3, 3))
    image, alpha = render_targets(gaussians, target_w2c, K)
    wanted = wanted.permute(0, 1, 3, 4, 2)
    loss = (image - wanted[..., :3]).square().mean()
    loss = loss + 0.3 * (alpha - wanted[..., 3]).square().mean()
    # The depth of a splat's pixel is the mean of the depths it covers.
    mask = pictures[:, :, 3]
    stride = mask.shape[-1] // gaussians.z.shape[-1]
    pool = torch.nn.functional.avg_pool2d
    covered = pool(mask, stride)
    z = pool(depths * mask, stride) / covered.clamp_min(1e-6)
    solid = (covered > 0.5).float()
    off = ((gaussians.z - z).abs() * solid).sum() / solid.sum().clamp_min(1.0)
    total: Tensor = loss + 0.05 * off
    return total


def psnr(image: Tensor, wanted: Tensor) -> float:
    """Return the PSNR in dB of pictures between 0 and 1."""
    return -10 * math.log10((image.clamp(0, 1) - wanted).square().mean().item() + 1e-10)


@torch.no_grad()
def evaluate(
    model: CostVolumeGaussianModel, examples: Examples, *, objects: int, views: int
) -> tuple[float, float]:
    """Return the mean PSNR of novel and of input views, over objects and views.

    Inputs above 4 are novel views, which then are no targets.
    """
    novel, again = [], []
    first = max(views, INPUTS)
    K, total = examples.K, examples.w2c.shape[1]
    for example in range(objects):
        pictures = examples.pictures[example : example + 1].float() / 255
        w2c = examples.w2c[example : example + 1]
        gaussians = model(pictures[:, :views], w2c[:, :views], K.expand(1, views, 3, 3))
        image, _ = render_targets(gaussians, w2c, K)
        wanted = pictures[0, :, :3].permute(0, 2, 3, 1)
        novel += [psnr(image[0, view], wanted[view]) for view in range(first, total)]
        again += [psnr(image[0, view], wanted[view]) for view in range(views)]
    return sum(novel) / len(novel), sum(again) / len(again)


class Trainer:
    """Hold the model, its optimizer and the running average of its weights."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.accelerator = Accelerator()
        model = CostVolumeGaussianModel()
        self.averages = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.02
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.averages = [p.to(self.accelerator.device) for p in self.averages]
        self.steps = 0
        self.curve: list[tuple[int, float, float, float]] = []

    def step(self, batch: tuple[Tensor, ...], factor: float) -> float:
        """Take one step at `factor` times the peak rate and return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = RATE * factor
        device = self.accelerator.device
        loss = loss_of(self.model, tuple(values.to(device) for values in batch))
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        decay = min(EMA_LIMIT, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, list(self.model.parameters()), 1 - decay)
        return float(loss.detach())

    def averaged(self) -> CostVolumeGaussianModel:
        """Return a model with the averaged weights."""
        model = CostVolumeGaussianModel.from_config(self.bare.config)
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), self.averages, strict=True):
                parameter.copy_(average)
        averaged: CostVolumeGaussianModel = model.eval()
        return averaged

    @property
    def bare(self) -> Any:
        """Return the model without what accelerate wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    def save(self, path: Path, spent: float) -> None:
        """Write everything a later process needs to go on."""
        state = {
            "model": self.bare.state_dict(),
            "averages": self.averages,
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "curve": self.curve,
            "spent": spent,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> float:
        """Continue from `path` and return the seconds already spent."""
        stored = torch.load(path, weights_only=True)
        self.bare.load_state_dict(stored["model"])
        self.averages = [p.to(self.accelerator.device) for p in stored["averages"]]
        self.optimizer.load_state_dict(stored["optimizer"])
        self.steps, self.curve = stored["steps"], stored["curve"]
        return float(stored["spent"])


def train(cache: Path, minutes: float, output: Path, objects: int) -> None:
    """Train for `minutes` of wall time in all and write weights and config to `output`."""
    held_out = load_examples(cache, 100, first=HELD_OUT)
    examples = load_examples(cache, objects)
    trainer, budget = Trainer(), WallBudget(minutes * 60)
    checkpoint = cache / "reconstructor-checkpoint.pt"
    if checkpoint.exists():
        budget.spent = trainer.restore(checkpoint)
    generator = torch.Generator().manual_seed(1 + trainer.steps)
    saved, recent = budget.used, []
    while not budget.is_over:
        factor = budget.cosine(trainer.steps, warmup_steps=100, floor=0.02)
        recent.append(trainer.step(draw_batch(examples, generator), factor))
        if not math.isfinite(recent[-1]):
            raise FloatingPointError(
                f"the loss is {recent[-1]} at step {trainer.steps}: delete {checkpoint} and train "
                "at a lower rate"
            )
        if trainer.steps % LOG_STEPS == 0:
            mean = sum(recent[-LOG_STEPS:]) / len(recent[-LOG_STEPS:])
            LOGGER.info("step %d, %.0f s, loss %.5f", trainer.steps, budget.used, mean)
        if budget.used - saved > CHECKPOINT_SECONDS:
            saved = budget.used
            novel, again = evaluate(trainer.averaged(), held_out, objects=16, views=4)
            trainer.curve.append((trainer.steps * BATCH, budget.used, novel, again))
            LOGGER.info("step %d: novel %.2f dB, input %.2f dB", trainer.steps, novel, again)
            trainer.save(checkpoint, budget.used)
    trainer.save(checkpoint, budget.used)
    model = trainer.averaged()
    figures = {
        views: evaluate(model, held_out, objects=64, views=views) for views in sorted(VIEW_CHANCES)
    }
    for views, (novel, again) in figures.items():
        LOGGER.info("%d pictures: novel %.2f dB, input %.2f dB", views, novel, again)
    output.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, output / "cost-volume-v1.safetensors")
    model.save_config(output)
    curve = {"columns": ["objects", "seconds", "novel dB", "input dB"], "rows": trainer.curve}
    text = json.dumps({"curve": curve, "held out": figures})
    (cache / "reconstructor-curve.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache/splat"))
    parser.add_argument("--minutes", type=float, default=60.0, help="wall time to train, in all")
    parser.add_argument("--objects", type=int, default=2400, help="size of the training set")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("weights"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(arguments.cache, arguments.minutes, arguments.output, arguments.objects)


if __name__ == "__main__":
    main()
