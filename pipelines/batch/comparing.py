"""Prompts to comparisons: each row uncached and with every arm, and how close the arms came.

A long `compare` that survives being killed. Each row's files are its uncached picture and one of
every arm, `{id}.arm1.png`; each row's figures are PSNR (dB), SSIM, feature distance, share of the
block computations executed and seconds of every arm. The arms run in an order that is rotated from
batch to batch, in one process, so that a machine that slows down slows all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skipstep.pipelines.batch.drawing import arguments_of, encode, no_picture, quiet_pipeline
from skipstep.pipelines.batch.making import Made, why_no_picture
from skipstep.pipelines.batch.manifests import Outcome
from skipstep.pipelines.batch.metadata import describe_row, origin_of
from skipstep.pipelines.batch.rows import Row, recipe_text
from skipstep.pipelines.compare.arms import BASELINE, Arm, read_arms
from skipstep.pipelines.compare.intervals import estimate
from skipstep.pipelines.compare.run import run_arm
from skipstep.pipelines.compare.tally import Batch, Taken
from skipstep.pipelines.metrics.fidelity import WINDOW, feature_distance, psnr, ssim

__all__ = ["Comparing", "sum_up"]

QUALITIES = {"psnr": True, "ssim": True, "feature_distance": False}
"""What is measured, and whether more of it is better."""


class Comparing:
    """Compares arms on rows with one pipeline.

    Args:
        arms: recipes by name, as the plan notes them.
        model: what to note as the model.
        metadata: whether pictures say how they were made.
        clips: "webp" or "mp4", for pipelines that make clips.
    """

    def __init__(
        self,
        pipe: Any,
        arms: Mapping[str, Any],
        *,
        model: str = "",
        metadata: bool = True,
        clips: str = "webp",
    ) -> None:
        self.pipe = quiet_pipeline(pipe)
        self.arms = [Arm(BASELINE, "baseline", 1), *read_arms(arms, 1)]
        self.origin = origin_of(pipe, model)
        self.metadata = metadata
        self.clips = clips
        self.turn = 0

    def use(self, plugins: str) -> None:
        """Try whether every arm can be attached."""
        for arm in self.arms[1:]:
            with self.pipe.plugins(*arm.plugins):
                pass

    def close(self) -> None:
        """Do nothing: no plugin stays attached."""

    def make(self, rows: Sequence[Row], *, plain: bool = False) -> list[Made]:
        """Run rows of one group through all arms; `plain` is nothing else, arms are the point."""
        call = arguments_of(self.pipe, rows)
        batch = Batch([row.prompt for row in rows], [row.seed for row in rows])
        order = [(self.turn + place) % len(self.arms) for place in range(len(self.arms))]
        self.turn += 1
        taken = {}
        for place in order:
            arm = self.arms[place]
            running = Arm(arm.name, arm.kind, rows[0].steps, arm.plugins)
            taken[place] = run_arm(self.pipe, running, batch, call)
        return [self.take(row, place, taken, len(rows)) for place, row in enumerate(rows)]

    def take(self, row: Row, place: int, taken: dict[int, Taken], count: int) -> Made:
        """Put one row's pictures and figures together."""
        truth = taken[0].pictures[place : place + 1]
        if (why := why_no_picture(truth)) is not None:
            return no_picture(row, why)
        runs = [taken[number] for number in range(len(self.arms))]
        fractions = [1.0 if run.report is None else run.report.fraction for run in runs]
        files: dict[str, bytes] = {}
        figures = {f"{BASELINE}.seconds": taken[0].seconds}
        for number, (arm, run) in enumerate(zip(self.arms, runs, strict=True)):
            picture = run.pictures[place : place + 1]
            described = describe_row(
                row,
                self.origin,
                batch_size=count,
                fraction=fractions[number],
                plugins=recipe_text(arm.plugins),
            )
            ending, content = encode(picture, described if self.metadata else None, self.clips)
            files[ending if number == 0 else f"arm{number}.{ending}"] = content
            if number > 0:
                found = measure(picture, truth)
                found |= {"fraction": fractions[number], "seconds": run.seconds}
                figures |= {f"arm{number}.{name}": value for name, value in found.items()}
            else:
                whole = described
        return Made(
            row,
            "ok",
            files,
            whole | {"figures": {k: v for k, v in figures.items() if not k.endswith("seconds")}},
            batch_size=count,
            seconds=sum(run.seconds for run in runs),
            fraction=sum(fractions) / len(fractions),
            figures=figures,
        )


def measure(picture: Any, truth: Any) -> dict[str, float]:
    """Return the qualities of a picture [1, f, 3, height, width] beside the uncached one.

    A picture that holds NaN is "broken", one that is equal is "identical": their PSNR is no number.
    """
    if why_no_picture(picture) == "nan":
        return {"broken": 1.0}
    own, other = picture.flatten(0, 1), truth.flatten(0, 1)
    found = {"feature_distance": float(feature_distance(own, other).mean())}
    if min(own.shape[-2:]) >= WINDOW:
        found["ssim"] = float(ssim(own, other).mean())
    if bool((own == other).all()):
        return found | {"identical": 1.0}
    return found | {"psnr": float(psnr(picture, truth)[0])}


def sum_up(arms: Iterable[str], rows: Iterable[Outcome]) -> dict[str, dict[str, Any]]:
    """Return what came of each arm: means with 95 % intervals, and the median speed-up."""
    figures = [row.figures for row in rows if row.status == "ok"]
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(arms, start=1):
        own = f"arm{number}."
        summed: dict[str, Any] = {"files": own.rstrip("."), "count": len(figures)}
        for quality, better in QUALITIES.items():
            values = [row[own + quality] for row in figures if own + quality in row]
            if values:
                taken = estimate(values, higher_is_better=better)
                summed[quality] = {
                    key: getattr(taken, key) for key in ("mean", "low", "high", "worst")
                }
        for word in ("identical", "broken"):
            summed[word] = sum(own + word in row for row in figures)
        if figures:
            summed["fraction"] = sum(row[own + "fraction"] for row in figures) / len(figures)
            ratios = sorted(row[f"{BASELINE}.seconds"] / row[own + "seconds"] for row in figures)
            summed["speedup"] = ratios[len(ratios) // 2]
        found[name] = summed
    return found
