"""Train a shipped reconstructor on procedural objects; it goes on from its last checkpoint.

Run: python -m skipstep.pipelines.splat.train cost-volume --minutes 60
What a step sees and minimises: lessons.py. AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101),
cosine in wall time; what is shipped is the running average of the weights in float16.
"""

import argparse
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from skipstep.pipelines.reference.budget import WallBudget
from skipstep.pipelines.splat.examples import HELD_OUT, load_examples
from skipstep.pipelines.splat.lessons import LESSONS, Lesson, draw_batch, evaluate, loss_of

__all__ = ["Trainer", "train"]

LOGGER = logging.getLogger(__name__)

RATE = 1e-3
EMA_LIMIT = 0.998
CHECKPOINT_SECONDS, LOG_STEPS = 600, 20


class Trainer:
    """Hold the model, its optimizer and the running average of its weights."""

    def __init__(self, lesson: Lesson, *, rate: float = RATE, bf16: bool = False) -> None:
        torch.manual_seed(0)
        self.rate = rate
        self.accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no")
        model = lesson.model()
        self.averages = [p.detach().clone() for p in model.parameters()]
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.02
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.averages = [p.to(self.accelerator.device) for p in self.averages]
        self.steps = 0
        self.curve: list[tuple[int, float, float, float]] = []

    def step(self, batch: tuple[Tensor, ...], factor: float) -> float:
        """Take one step at `factor` times the peak rate and return the loss."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
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

    def averaged(self) -> Any:
        """Return a model with the averaged weights."""
        model = type(self.bare).from_config(self.bare.config)
        with torch.no_grad():
            for parameter, average in zip(model.parameters(), self.averages, strict=True):
                parameter.copy_(average)
        return model.eval()

    def borrow(self, path: Path) -> None:
        """Start from the weights in `path`, also another model's, wherever names and sizes agree.

        Of the first layer the channels of the picture are taken.
        """
        lent = load_file(path)
        enter = "unet.enter.weight"
        with torch.no_grad():
            for name, parameter in self.bare.named_parameters():
                values = lent.get(name)
                if values is not None and values.shape == parameter.shape:
                    parameter.copy_(values)
                elif values is not None and name == enter:
                    parameter[:, :4].copy_(values[:, :4])
            for parameter, average in zip(self.bare.parameters(), self.averages, strict=True):
                average.copy_(parameter)

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


def train(
    name: str,
    cache: Path,
    output: Path,
    *,
    minutes: float,
    objects: range,
    rate: float = RATE,
    bf16: bool = False,
    start: Path | None = None,
) -> None:
    """Train for `minutes` of wall time in all and write weights and config to `output`."""
    lesson = LESSONS[name]
    held_out = load_examples(cache, 100, first=HELD_OUT)
    examples = load_examples(cache, len(objects), first=objects.start)
    trainer = Trainer(lesson, rate=rate, bf16=bf16)
    budget = WallBudget(minutes * 60)
    checkpoint = cache / f"{name}-checkpoint.pt"
    if checkpoint.exists():
        budget.spent = trainer.restore(checkpoint)
    elif start is not None:
        trainer.borrow(start)
    generator = torch.Generator().manual_seed(1 + objects.start + trainer.steps)
    saved, recent = budget.used, []
    while not budget.is_over:
        factor = budget.cosine(trainer.steps, warmup_steps=30, floor=0.02)
        recent.append(trainer.step(draw_batch(lesson, examples, generator), factor))
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
            novel, again = evaluate(
                trainer.averaged(), held_out, objects=16, views=lesson.eval_views
            )
            trainer.curve.append((trainer.steps * lesson.batch, budget.used, novel, again))
            LOGGER.info("step %d: novel %.2f dB, input %.2f dB", trainer.steps, novel, again)
            trainer.save(checkpoint, budget.used)
    trainer.save(checkpoint, budget.used)
    LOGGER.info("%d steps, %.0f CPU s", trainer.steps, time.process_time())
    model = trainer.averaged()
    output.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, output / f"{lesson.weights}.safetensors")
    figures = {
        views: evaluate(model, held_out, objects=64, views=views)
        for views in sorted(lesson.view_chances)
    }
    for views, (novel, again) in figures.items():
        LOGGER.info("%d pictures: novel %.2f dB, input %.2f dB", views, novel, again)
    curve = {"columns": ["objects", "seconds", "novel dB", "input dB"], "rows": trainer.curve}
    text = json.dumps({"curve": curve, "held out": figures})
    (cache / f"{name}-curve.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", choices=sorted(LESSONS))
    parser.add_argument("--cache", type=Path, default=Path(".cache/splat"))
    parser.add_argument("--minutes", type=float, default=60.0, help="wall time to train, in all")
    parser.add_argument("--objects", type=int, default=2400, help="size of the training set")
    parser.add_argument("--first", type=int, default=0, help="seed of its first object")
    parser.add_argument("--rate", type=float, default=RATE, help="peak learning rate")
    parser.add_argument("--bf16", action="store_true", help="the network in bfloat16")
    parser.add_argument("--start", type=Path, help="weights to start from")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("weights"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    train(
        arguments.model,
        arguments.cache,
        arguments.output,
        minutes=arguments.minutes,
        objects=range(arguments.first, arguments.first + arguments.objects),
        rate=arguments.rate,
        bf16=arguments.bf16,
        start=arguments.start,
    )


if __name__ == "__main__":
    main()
