"""Train the reference denoiser on a CPU.

Stop and start it as you like: it resumes from its last checkpoint.
Run, in this order (about two hours on two cores; `npm`, `pip install resvg-py==0.5.0` needed):
  python -m skipstep.pipelines.reference.vendor_features      once, EfficientNet-Lite0
  python -m skipstep.pipelines.reference.vendor_text          once, MiniLM
  python -m skipstep.pipelines.reference.autoencoder --minutes 19
  torchrun --nproc-per-node 2 -m skipstep.pipelines.reference.train --minutes 74
  python -m skipstep.pipelines.reference.alignment
  python -m skipstep.pipelines.reference.evaluate
  python -m skipstep.pipelines.reference.sheets

The passes run in bfloat16 where the processor has units for it, else in float32; the optimizers
always in float32: Muon for the blocks' matrices (muon.py), AdamW (Loshchilov & Hutter 2019,
arXiv:1711.05101) for the rest. What is shipped is their running average (EMA) in float16. The
learning rate follows wall time, not steps, so that its decay is never cut off.
"""

import argparse
import json
import logging
import math
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from skipstep.pipelines.reference.budget import WallBudget
from skipstep.pipelines.reference.denoiser import CONFIG, DENOISER, flow_loss, new_denoiser
from skipstep.pipelines.reference.examples import Examples, load_examples
from skipstep.pipelines.reference.muon import Muon
from skipstep.pipelines.reference.processes import (
    agree,
    average_gradients,
    join,
    process_count,
    rank,
)
from skipstep.pipelines.reference.threads import CoreFollower

__all__ = ["Trainer", "train"]

LOGGER = logging.getLogger(__name__)

BATCH = 64
# Peak learning rates of the blocks' matrices (Muon) and of everything else (AdamW).
MATRIX_RATE = 2e-3
OTHER_RATE = 1e-3
EMA_LIMIT = 0.997
EARLY_SHARE = 0.1
CHECKPOINT_SECONDS = 300
LOG_STEPS = 25


def precision() -> torch.dtype:
    """Return bfloat16 if the processor multiplies it in hardware; emulated it is slow."""
    able: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return torch.bfloat16 if able.get("amx_bf16") or able.get("avx512_bf16") else torch.float32


class Trainer:
    """Hold the model, its float32 master weights, the optimizers and the running average."""

    def __init__(self) -> None:
        self.model = new_denoiser().train()
        self.names = [name for name, _ in self.model.named_parameters()]
        self.masters = [p.detach().clone() for p in self.model.parameters()]
        self.averages = [p.clone() for p in self.masters]
        self.model.to(precision())
        named = list(zip(self.names, self.masters, strict=True))
        hidden = [p for name, p in named if "transformer_blocks" in name and p.ndim == 2]
        others = [p for p in self.masters if not any(p is q for q in hidden)]
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(hidden, lr=MATRIX_RATE, precision=precision()),
            torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.97), weight_decay=0.01),
        ]
        self.steps = 0
        self.views = 0
        self.losses: list[tuple[int, float, float]] = []

    def step(self, examples: Examples, generator: torch.Generator, factor: float) -> float:
        """Take one step at `factor` times the peak learning rates; return the loss."""
        x_0, text, mask = examples.draw(BATCH // process_count(), generator)
        loss = flow_loss(self.model, x_0, text, mask, generator)
        torch.autograd.backward(loss)
        parameters = list(self.model.parameters())
        for master, parameter in zip(self.masters, parameters, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        average_gradients(self.masters)
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        peaks = (MATRIX_RATE, OTHER_RATE)
        for peak, optimizer in zip(peaks, self.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
        self.steps += 1
        self.views += BATCH
        with torch.no_grad():
            for parameter, master in zip(parameters, self.masters, strict=True):
                parameter.copy_(master)
            decay = min(EMA_LIMIT, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.averages, self.masters, 1 - decay)
        return loss.item()

    def averaged(self) -> dict[str, Tensor]:
        """Return the running average under the model's parameter names, fp16."""
        return {
            name: average.half().contiguous()
            for name, average in zip(self.names, self.averages, strict=True)
        }

    @torch.no_grad()
    def start_from(self, weights: Path) -> None:
        """Begin with released weights instead of random ones; the optimizers begin anew."""
        released = load_file(weights)
        parameters = list(self.model.parameters())
        state = zip(self.names, self.masters, self.averages, parameters, strict=True)
        for name, master, average, parameter in state:
            for value in (master, average, parameter):
                value.copy_(released[name])

    def save(self, path: Path, spent: float) -> None:
        """Write everything a later process needs to go on."""
        state = {
            "masters": self.masters,
            "averages": self.averages,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "steps": self.steps,
            "views": self.views,
            "losses": self.losses,
            "spent": spent,
        }
        partial = path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(path)

    def restore(self, path: Path) -> float:
        """Continue from `path` and return the seconds already spent."""
        stored = torch.load(path, weights_only=True)
        with torch.no_grad():
            for name in ("masters", "averages"):
                for value, saved in zip(getattr(self, name), stored[name], strict=True):
                    value.copy_(saved)
            for parameter, master in zip(self.model.parameters(), self.masters, strict=True):
                parameter.copy_(master)
        for optimizer, state in zip(self.optimizers, stored["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.steps, self.views = stored["steps"], stored["views"]
        self.losses = stored["losses"]
        return float(stored["spent"])


def train(cache: Path, minutes: float, output: Path, weights: Path | None = None) -> None:
    """Train for `minutes` of wall time in all and write the weights `DENOISER` to `output`.

    With `weights`, a new run begins with that safetensors file; a checkpoint goes before it.
    """
    join()
    torch.manual_seed(0)
    examples = load_examples(cache)
    trainer, budget = Trainer(), WallBudget(minutes * 60)
    checkpoint, early = cache / "denoiser-checkpoint.pt", cache / "denoiser-early.safetensors"
    if checkpoint.exists():
        budget.spent = trainer.restore(checkpoint)
    elif weights is not None:
        trainer.start_from(weights)
    generator = torch.Generator().manual_seed(trainer.steps * process_count() + rank())
    LOGGER.info("%d pictures, resuming at step %d", len(examples.latents), trainer.steps)
    follower = CoreFollower(most=1 if process_count() > 1 else None)
    saved, recent = budget.used, []
    while True:
        factor = budget.cosine(trainer.steps, warmup_steps=60, floor=0.01)
        factor, share_over = agree(factor, float(budget.is_over))
        if share_over > 0:
            break
        recent.append(trainer.step(examples, generator, factor))
        follower.adjust()
        if not math.isfinite(recent[-1]):
            raise FloatingPointError(
                f"the loss is {recent[-1]} at step {trainer.steps}: delete {checkpoint} and train "
                "at lower peak rates"
            )
        if rank() > 0:
            continue
        if trainer.steps % LOG_STEPS == 0:
            mean = sum(recent[-LOG_STEPS:]) / len(recent[-LOG_STEPS:])
            trainer.losses.append((trainer.views, budget.used, mean))
            report = (trainer.steps, trainer.views, budget.used, mean, follower.count)
            LOGGER.info("step %d, %d views, %.0f s, loss %.4f, %d threads", *report)
        if budget.fraction >= EARLY_SHARE and not early.exists():
            save_file(trainer.averaged(), early)
        if budget.used - saved > CHECKPOINT_SECONDS:
            saved = budget.used
            trainer.save(checkpoint, saved)
    if rank() == 0:
        trainer.save(checkpoint, budget.used)
        save_file(trainer.averaged(), output / f"{DENOISER}.safetensors")
        (output / f"{DENOISER}.json").write_text(json.dumps(CONFIG) + "\n", encoding="utf-8")
        curve = {"columns": ["views", "seconds", "loss"], "rows": trainer.losses}
        (cache / "denoiser-curve.json").write_text(json.dumps(curve) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="downloads, checkpoints")
    parser.add_argument("--minutes", type=float, default=74.0, help="wall time to train, in all")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("weights"))
    parser.add_argument("--weights", type=Path, help="begin with them, not at random")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(arguments.cache, arguments.minutes, arguments.output, arguments.weights)


if __name__ == "__main__":
    main()
