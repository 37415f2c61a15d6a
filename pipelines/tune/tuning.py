"""The outcome of a tuning: every trial, the Pareto front, the recipe that meets the target.

Work is the share of an uncached run's FLOPs and is what a speed-up is promised in; seconds are
measured beside it and depend on the machine.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from skipstep.pipelines.compare.sheet import ACCENT, BACK, COUNTER, INK, SOFT
from skipstep.pipelines.pictures import save_png, write_whole
from skipstep.pipelines.tune.arms import Params, describe
from skipstep.pipelines.tune.trial import Outcome
from skipstep.plugins import options, recipe

__all__ = ["Target", "Trial", "Tuning"]

WIDTH, HEIGHT, MARGIN = 900, 560, 70
COLOURS = {"fewer": COUNTER, "solver": "#5b4fb0"}


@dataclass(frozen=True)
class Target:
    """What is asked for: `name` is target_speedup, max_feature_distance or min_psnr."""

    name: str
    value: float

    def is_met(self, outcome: Outcome, slack: float = 0.0) -> bool:
        """Say whether an outcome meets the target, or misses it by less than the share `slack`."""
        if self.name == "target_speedup":
            return 1 / outcome.work >= self.value * (1 - slack)
        if self.name == "max_feature_distance":
            return outcome.distance <= self.value * (1 + slack)
        return outcome.psnr >= self.value * (1 - slack)

    def preference(self, outcome: Outcome) -> float:
        """Return what is minimised among the arms that meet the target."""
        return outcome.distance if self.name == "target_speedup" else outcome.work

    def miss(self, outcome: Outcome) -> float:
        """Return how far an outcome is from the target, to choose among those that miss it."""
        if self.name == "target_speedup":
            return outcome.work
        return outcome.distance if self.name == "max_feature_distance" else -outcome.psnr


@dataclass(frozen=True)
class Trial:
    """One arm that was tried on the calibration prompts."""

    number: int
    params: Params
    outcome: Outcome

    @property
    def name(self) -> str:
        """Name the arm in a few words."""
        return describe(self.params)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {"number": self.number, "name": self.name, "params": self.params} | {
            "outcome": asdict(self.outcome)
        }


@dataclass
class Tuning:
    """What a tuning found; `best` is the chosen trial and `plugins` what it switches on.

    `held_out` is the best arm on prompts that no trial saw, `plain` fewer plain steps of the same
    work on the same prompts, and `seconds_plain` the uncached pipeline's seconds there.
    """

    pipeline: str
    target: Target
    steps: int
    trials: list[Trial]
    best: Trial
    plugins: list[Any]
    held_out: Outcome
    plain: Outcome | None
    plain_steps: int
    seconds_plain: float
    prompts: list[str] = field(default_factory=list)
    held_out_prompts: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def front(self) -> list[Trial]:
        """Return the trials that no other beats in both work and distance, by rising work."""
        ordered = sorted(self.trials, key=lambda t: (t.outcome.work, t.outcome.distance))
        front: list[Trial] = []
        for trial in ordered:
            if not front or trial.outcome.distance < front[-1].outcome.distance:
                front.append(trial)
        return front

    @property
    def is_plain(self) -> bool:
        """Say whether fewer plain steps won: then nothing is switched on."""
        return bool(self.best.params["method"] == "fewer")

    @property
    def is_solver(self) -> bool:
        """Say whether another solver won: it runs in fewer steps, which the call has to name."""
        return bool(self.best.params["method"] == "solver")

    @property
    def run_steps(self) -> int:
        """Return the num_inference_steps to call the pipeline with."""
        is_fewer = self.is_plain or self.is_solver
        return int(self.best.params["count"]) if is_fewer else self.steps

    def __str__(self) -> str:
        held = self.held_out
        lines = [
            f"{self.pipeline}, {self.steps} steps, {self.target.name}={self.target.value:g}: "
            f"{len(self.trials)} trials on {len(self.prompts)} prompts in {self.seconds:.0f} s",
            "",
            f"{'arm':<44} {'work':>6} {'speed-up':>9} {'PSNR':>6} {'LPe':>7}",
        ]
        for trial in self.front:
            seen = trial.outcome
            lines.append(
                f"{trial.name:<44} {seen.work:6.1%} {1 / seen.work:8.2f}x {seen.psnr:6.1f} "
                f"{seen.distance:7.4f}{'  <-' if trial is self.best else ''}"
            )
        lines += [
            "",
            f"Best: {self.best.name}. On {len(self.held_out_prompts)} held-out prompts: "
            f"{1 / held.work:.2f}x less work, measured {self.seconds_plain / held.seconds:.2f}x "
            f"in wall time, {held.psnr:.1f} dB, LPe {held.distance:.4f}.",
            self.promise(),
            self.versus_plain(),
        ]
        return "\n".join(lines)

    def promise(self) -> str:
        """Say whether the target holds on the held-out prompts."""
        if self.target.is_met(self.held_out):
            return "The target holds on the held-out prompts."
        if self.target.is_met(self.held_out, slack=0.05):
            return "The target is missed by less than 5 % on the held-out prompts."
        if not self.target.is_met(self.best.outcome):
            return "No arm reached the target: this one comes nearest. Try more minutes or steps."
        return "The target is missed on the held-out prompts: give more prompts to tune on."

    def versus_plain(self) -> str:
        """Say how fewer plain steps of the same work do."""
        if self.is_plain:
            return (
                f"Fewer plain steps win: call the pipeline with num_inference_steps="
                f"{self.run_steps}, no plugin is switched on."
            )
        if self.is_solver:
            wins = f"A solver wins: call the pipeline with num_inference_steps={self.run_steps}. "
        else:
            wins = ""
        if self.plain is None:
            return wins + "Nothing is saved, so there is no number of plain steps to set beside it."
        verdict = "worse" if self.plain.distance > self.held_out.distance else "as good or better"
        return wins + (
            f"{self.plain_steps} plain steps would be {verdict}: {self.plain.psnr:.1f} dB, "
            f"LPe {self.plain.distance:.4f}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "version": 1,
            "pipeline": self.pipeline,
            "target": asdict(self.target),
            "steps": self.steps,
            "run_steps": self.run_steps,
            "trials": [trial.to_dict() for trial in self.trials],
            "front": [trial.number for trial in self.front],
            "best": self.best.number,
            "plugins": [options.to_dict(plugin) for plugin in self.plugins],
            "held_out": asdict(self.held_out),
            "plain_steps": self.plain_steps,
            "plain": None if self.plain is None else asdict(self.plain),
            "seconds_plain": self.seconds_plain,
            "prompts": self.prompts,
            "held_out_prompts": self.held_out_prompts,
            "seconds": self.seconds,
        }

    def to_json(self, path: str | Path | None = None) -> str:
        """Return everything as JSON, and write it to `path` if one is given."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        if path is not None:
            write_whole(Path(path), text.encode())
        return text

    def save_recipe(self, path: str | Path) -> None:
        """Write the best arm's plugins as a recipe for `pipe.load_plugins`."""
        recipe.save(path, self.plugins, for_pipeline=self.pipeline)

    def save_picture(self, path: str | Path) -> None:
        """Draw all trials, the front and the best as a PNG: work across, distance upwards."""
        save_png(draw(self), Path(path), {"tuning": f"{self.target.name}={self.target.value:g}"})


def draw(tuning: Tuning) -> Image.Image:
    """Draw the trials; plain steps in their own colour, the front joined, the best ringed."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), BACK)
    pen = ImageDraw.Draw(picture)
    font, small = ImageFont.load_default(17), ImageFont.load_default(13)
    highest = max(t.outcome.distance for t in tuning.trials) * 1.05 or 1.0
    right = max(1.0, max(t.outcome.work for t in tuning.trials))

    def at(trial: Trial) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * trial.outcome.work / right
        return x, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * trial.outcome.distance / highest

    title = f"{tuning.pipeline}, {tuning.steps} steps: {tuning.best.name}"
    pen.text((MARGIN, 18), title, fill=INK, font=font)
    low, edge = HEIGHT - MARGIN, WIDTH - MARGIN
    pen.line([(MARGIN, MARGIN), (MARGIN, low), (edge, low)], fill=SOFT)
    for share in (0.25, 0.5, 0.75, 1.0):
        x = MARGIN + (WIDTH - 2 * MARGIN) * share / right
        pen.line([(x, low), (x, low + 5)], fill=SOFT)
        pen.text((x, low + 8), f"{share:.0%}", fill=SOFT, font=small, anchor="ma")
        y = low - (HEIGHT - 2 * MARGIN) * share
        pen.text((MARGIN - 8, y), f"{highest * share:.2g}", fill=SOFT, font=small, anchor="rm")
    pen.text((WIDTH / 2, HEIGHT - 24), "share of the FLOPs", fill=INK, font=small, anchor="ma")
    pen.text((MARGIN, MARGIN - 22), "feature distance (lower is closer)", fill=INK, font=small)
    joined = [at(trial) for trial in tuning.front]
    if len(joined) > 1:
        pen.line(joined, fill=ACCENT, width=2)
    for trial in tuning.trials:
        dot(pen, at(trial), 4, COLOURS.get(trial.params["method"], ACCENT))
    x, y = at(tuning.best)
    pen.ellipse((x - 9, y - 9, x + 9, y + 9), outline=INK, width=2)
    legend: Sequence[tuple[str, str]] = (
        ("caches", ACCENT),
        ("other solvers, fewer steps", COLOURS["solver"]),
        ("fewer plain steps", COUNTER),
    )
    for line, (text, colour) in enumerate(legend):
        dot(pen, (WIDTH - 210, MARGIN + 20 * line), 4, colour)
        pen.text((WIDTH - 198, MARGIN + 20 * line), text, fill=INK, font=small, anchor="lm")
    return picture


def dot(pen: ImageDraw.ImageDraw, at: tuple[float, float], radius: int, colour: str) -> None:
    """Draw a filled circle."""
    x, y = at
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
