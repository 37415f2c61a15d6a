"""Train a reference model from its recipe; stop and start it as you like.

  python -m skipstep.pipelines.reference.train unet                 a name of recipes/, or a file
  python -m skipstep.pipelines.reference.train unet --slice 9       at most 9 minutes of it now
  python -m skipstep.pipelines.reference.train unet --pack          only make the data

The first call renders and encodes the data (needs `npm` and `pip install "skipstep[train]"`) and
keeps them in the cache folder; with `--pack` they are rendered and not encoded: the folder that it
prints is all that a machine without a network needs, as `--cache`. Every call goes on from the last
checkpoint.
On a GPU it uses the GPU; on several, or on several processes of a CPU, start it with `accelerate
launch`. The run's folder holds the checkpoint, the loss curve and a sheet of samples per quarter of
an hour; `--release` writes the weights to the zoo.

The passes run in bfloat16 where the hardware has units for it, else in float32; weights and
optimizers always in float32: Muon for the blocks' matrices (muon.py), AdamW (Loshchilov & Hutter
2019, arXiv:1711.05101) for the rest. What is shipped is the running average (EMA) in float16. The
learning rate follows wall time, not steps, so that its decay is never cut off.
"""

import argparse
import json
import logging
import math
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import Tensor

from skipstep.pipelines.reference.budget import WallBudget
from skipstep.pipelines.reference.clips import clip_file
from skipstep.pipelines.reference.curve import Row, draw_curve
from skipstep.pipelines.reference.data import picture_file, store_pictures
from skipstep.pipelines.reference.examples import Examples, chosen_styles, load_examples
from skipstep.pipelines.reference.families import FAMILIES
from skipstep.pipelines.reference.finer import finer_patches
from skipstep.pipelines.reference.load import find_file, new_reference
from skipstep.pipelines.reference.muon import Muon
from skipstep.pipelines.reference.plain_attention import plain_attention
from skipstep.pipelines.reference.precision import precision
from skipstep.pipelines.reference.recipe import Recipe, digest, find_recipe, load_recipe
from skipstep.pipelines.reference.sheets import draw_sheet
from skipstep.pipelines.reference.threads import CoreFollower

__all__ = ["Trainer", "train"]

LOGGER = logging.getLogger(__name__)

EARLY_SHARE = 0.1
LOG_STEPS = 25


class Trainer:
    """Hold the model, the optimizers and the running average of one recipe."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self.recipe, self.accelerator = recipe, accelerator
        self.family = FAMILIES[recipe.family]
        self.model = self.family.new(recipe.denoiser).train().to(accelerator.device)
        if recipe.training.compile_blocks:
            for part in self.family.matrices:
                for block in self.model.get_submodule(part).children():
                    block.compile()
        named = list(self.model.named_parameters())
        self.names = [name for name, _ in named]
        self.parameters: list[Tensor] = [p for _, p in named]
        self.averages = [p.detach().clone() for p in self.parameters]
        hidden: list[Tensor] = [
            p for name, p in named if name.startswith(self.family.matrices) and p.ndim > 1
        ]
        chosen = {id(p) for p in hidden}
        others = [p for p in self.parameters if id(p) not in chosen]
        half = accelerator.mixed_precision == "bf16"
        settings = recipe.training
        self.peaks = (settings.matrix_rate, settings.other_rate)
        self.optimizers: list[torch.optim.Optimizer] = [
            Muon(
                hidden,
                lr=settings.matrix_rate,
                precision=torch.bfloat16 if half else torch.float32,
            ),
            torch.optim.AdamW(others, lr=settings.other_rate, betas=(0.9, 0.97), weight_decay=0.01),
        ]
        # Several processes: gradients are averaged inside the backward pass.
        self.shared = accelerator.prepare(self.model) if accelerator.num_processes > 1 else None
        self.steps = 0
        self.views = 0
        self.losses: list[Row] = []

    def step(self, examples: Examples, generator: torch.Generator, factor: float) -> float:
        """Take one step at `factor` times the peak learning rates; return the loss."""
        size = self.recipe.training.batch
        batch = examples.draw(size // self.accelerator.num_processes, generator)
        on_cpu = self.accelerator.device.type == "cpu"
        with self.accelerator.autocast(), plain_attention(on_cpu):
            loss = self.family.loss(self.shared or self.model, batch, generator)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters, 1.0)
        for peak, optimizer in zip(self.peaks, self.optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()
        self.steps += 1
        self.views += size
        with torch.no_grad():
            decay = min(self.recipe.training.average, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.averages, self.parameters, 1 - decay)
        return loss.item()

    def averaged(self) -> dict[str, Tensor]:
        """Return the running average under the model's parameter names, fp16."""
        return {
            name: average.half().cpu().contiguous()
            for name, average in zip(self.names, self.averages, strict=True)
        }

    @torch.no_grad()
    def start_from(self, weights: Path) -> None:
        """Begin with released weights instead of random ones; the optimizers begin anew.

        Patches may be finer than the released ones (finer.py); any other parameter whose shape
        differs from the released one begins at random.
        """
        released = load_file(weights)
        if self.recipe.family == "pixart":
            released = finer_patches(released, self.recipe.denoiser["patch_size"])
        for name, parameter, average in zip(
            self.names, self.parameters, self.averages, strict=True
        ):
            if released[name].shape != parameter.shape:
                LOGGER.info("%s begins at random: its shape is not that of %s", name, weights.name)
                continue
            for value in (parameter, average):
                value.copy_(released[name])

    def save(self, path: Path, spent: float) -> None:
        """Write everything a later process needs to go on."""
        state = {
            "recipe": digest(self.recipe.denoiser),
            "parameters": [p.detach() for p in self.parameters],
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
        stored = torch.load(path, weights_only=True, map_location=self.accelerator.device)
        if stored["recipe"] != digest(self.recipe.denoiser):
            raise ValueError(
                f"{path} was begun with another denoiser than {self.recipe.title}'s recipe says: "
                "count its version up to begin anew, or restore the recipe"
            )
        with torch.no_grad():
            for name in ("parameters", "averages"):
                for value, saved in zip(getattr(self, name), stored[name], strict=True):
                    value.copy_(saved)
        for optimizer, state in zip(self.optimizers, stored["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.steps, self.views = stored["steps"], stored["views"]
        self.losses = [tuple(row) for row in stored["losses"]]
        return float(stored["spent"])


class Run:
    """The folder of one recipe's run: checkpoint, weights, loss curve, sheets."""

    def __init__(self, trainer: Trainer, cache: Path) -> None:
        self.trainer = trainer
        self.folder = cache / "runs" / trainer.recipe.title
        self.folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = self.folder / "checkpoint.pt"
        self.early = self.folder / "early.safetensors"
        self.weights = self.folder / "weights.safetensors"

    def save(self, spent: float) -> None:
        """Write the checkpoint, the averaged weights and the loss curve."""
        self.trainer.save(self.checkpoint, spent)
        save_file(self.trainer.averaged(), self.weights)
        rows = self.trainer.losses
        curve = {"columns": ["views", "seconds", "loss"], "rows": rows}
        (self.folder / "curve.json").write_text(json.dumps(curve) + "\n", encoding="utf-8")
        if len(rows) > 1:
            draw_curve(rows).save(self.folder / "loss.png")

    def draw_sheet(self) -> None:
        """Write a sheet of samples of the averaged weights."""
        recipe = self.trainer.recipe
        state = random_state()
        pipeline = new_reference(recipe, self.trainer.averaged())
        pipeline.to(self.trainer.accelerator.device)
        path = self.folder / f"sheet-{self.trainer.views:08d}.png"
        draw_sheet(pipeline, recipe).save(path)
        torch.set_rng_state(state)
        LOGGER.info("drew %s", path)


def random_state() -> Tensor:
    """Return the state of torch's own generator: new modules draw from it."""
    return torch.get_rng_state()


def train(
    recipe: Recipe,
    cache: Path,
    *,
    slice_minutes: float = math.inf,
    weights: Path | None = None,
    follower: CoreFollower | None = None,
) -> Path:
    """Train for the recipe's minutes of wall time, or a slice of them; return the run's folder.

    With `weights`, a new run begins with that safetensors file, else with the one that the recipe
    names, else at random; a checkpoint goes before it.
    """
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision=precision(), cpu=not torch.cuda.is_available())
    device = accelerator.device
    with accelerator.main_process_first():
        examples = load_examples(recipe.data, cache, device)
    if device.type != "cpu":
        examples = examples.to(device)
    trainer = Trainer(recipe, accelerator)
    run, settings = Run(trainer, cache), recipe.training
    if weights is None and settings.begin_with:
        weights = find_file(f"{settings.begin_with}.safetensors")
        if weights is None:
            raise ValueError(
                f"{recipe.title} begins with {settings.begin_with!r}, whose weights are not here: "
                "train that first, or give --weights"
            )
    budget = WallBudget(settings.minutes * 60)
    if run.checkpoint.exists():
        budget.spent = trainer.restore(run.checkpoint)
    elif weights is not None:
        trainer.start_from(weights)
    generator = torch.Generator().manual_seed(
        trainer.steps * accelerator.num_processes + accelerator.process_index
    )
    begun_at = trainer.steps
    LOGGER.info("%d pictures, resuming at step %d", len(examples.latents), begun_at)
    begun = saved = drawn = budget.used
    recent: list[float] = []
    while True:
        over = budget.is_over or budget.used - begun > slice_minutes * 60
        factor = budget.cosine(trainer.steps, warmup_steps=settings.warmup_steps, floor=0.01)
        shared = accelerator.reduce(
            torch.tensor([factor, float(over)], device=device), reduction="mean"
        )
        if shared[1] > 0:
            break
        recent.append(trainer.step(examples, generator, float(shared[0])))
        if follower is not None:
            follower.adjust()
        if not math.isfinite(recent[-1]):
            raise FloatingPointError(
                f"the loss is {recent[-1]} at step {trainer.steps}: delete {run.folder} and train "
                "at lower peak rates"
            )
        if not accelerator.is_main_process:
            continue
        if trainer.steps % LOG_STEPS == 0:
            mean = sum(recent[-LOG_STEPS:]) / len(recent[-LOG_STEPS:])
            trainer.losses.append((trainer.views, budget.used, mean))
            report = (trainer.steps, trainer.views, budget.used, mean)
            LOGGER.info("step %d, %d views, %.0f s, loss %.4f", *report)
        if budget.fraction >= EARLY_SHARE and not run.early.exists():
            save_file(trainer.averaged(), run.early)
        if budget.used - saved > settings.checkpoint_seconds:
            saved = budget.used
            run.save(saved)
        if budget.used - drawn > settings.sheet_seconds:
            drawn = budget.used
            run.draw_sheet()
    if accelerator.is_main_process and trainer.steps > begun_at:
        run.save(budget.used)
        run.draw_sheet()
    return run.folder


def pack(recipe: Recipe, cache: Path) -> Path:
    """Render the data of `recipe` into a folder of its own and return it: a few MB."""
    data = recipe.data
    folder = cache / f"pack-{digest(data)}"
    folder.mkdir(parents=True, exist_ok=True)
    for style, pictures in chosen_styles(data, cache).items():
        is_clips = data.frames > 1
        name = clip_file(data.size, data.frames) if is_clips else picture_file(style, data.size)
        store_pictures(folder / name, pictures)
    return folder


def parse_arguments() -> Any:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", help="a name of recipes/ or a YAML file")
    parser.add_argument("--cache", type=Path, default=Path(".cache"), help="data, checkpoints")
    parser.add_argument("--slice", type=float, default=math.inf, help="minutes to train now")
    parser.add_argument("--weights", type=Path, help="begin with them, not the recipe's")
    parser.add_argument("--threads", type=int, help="at most so many; else all free cores")
    parser.add_argument("--pack", action="store_true", help="only render the data, to take along")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    recipe = load_recipe(find_recipe(arguments.recipe))
    if arguments.pack:
        print(pack(recipe, arguments.cache))
        return
    follower = None if torch.cuda.is_available() else CoreFollower(arguments.threads)
    train(
        recipe,
        arguments.cache,
        slice_minutes=arguments.slice,
        weights=arguments.weights,
        follower=follower,
    )


if __name__ == "__main__":
    main()
