"""Try one way to run a pipeline on fixed prompts and seeds: its work, its fidelity, its seconds.

The quick sibling of `compare`: no interleaved timing and no intervals, so that a search can try
dozens of ways. Uncached pictures are made once and kept.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from skipstep.pipelines.compare.run import generators, prompt_parameter
from skipstep.pipelines.compare.tally import Batch
from skipstep.pipelines.metrics.fidelity import feature_distance, psnr
from skipstep.pipelines.pictures import read_pictures

__all__ = ["Outcome", "Trier"]

LARGEST_PSNR = 100.0
"""Decibels that identical pictures count as, where a finite number is needed."""


@dataclass(frozen=True)
class Outcome:
    """What one way of running gave; means over the prompts.

    `work` is the share of an uncached run's FLOPs (of its block computations where FLOPs cannot be
    counted), `psnr` in decibels, `distance` a feature distance (metrics/fidelity.py), `seconds` a
    picture.
    """

    work: float
    psnr: float
    worst_psnr: float
    distance: float
    seconds: float
    verdict: str = ""


@dataclass
class Trier:
    """Run a pipeline in different ways on the same prompts and seeds.

    Args:
        call: goes to the pipeline.
        before: called before every picture; it may raise to stop.
        look: called with the number of every picture of a run, and the picture.
    """

    pipe: Any
    prompts: Sequence[Any]
    seeds: Sequence[int]
    steps: int
    call: dict[str, Any]
    before: Callable[[], None] | None = None
    look: Callable[[int, Tensor], None] | None = None
    truth: list[Float[Tensor, "1 f 3 height width"]] = field(default_factory=list)
    plain_seconds: list[float] = field(default_factory=list)

    def picture(self, i: int, steps: int) -> tuple[Float[Tensor, "1 f 3 height width"], float]:
        """Make picture i with what is switched on; return it and the seconds it took."""
        if self.before is not None:
            self.before()
        batch = Batch([self.prompts[i]], [self.seeds[i]])
        prompt = {prompt_parameter(self.pipe): batch.prompts}
        noise = generators(batch)
        started = time.perf_counter()
        result = self.pipe(
            **prompt, **self.call, num_inference_steps=steps, generator=noise, output_type="np"
        )
        return read_pictures(result), time.perf_counter() - started

    def make_truth(self) -> None:
        """Make the uncached pictures, once; no plugin may be on."""
        for i in range(len(self.truth), len(self.prompts)):
            picture, seconds = self.picture(i, self.steps)
            self.truth.append(picture)
            self.plain_seconds.append(seconds)

    def run(self, plugins: Sequence[Any], steps: int | None = None) -> Outcome:
        """Make all pictures with `plugins` on, with another number of steps, or both."""
        self.make_truth()
        used = self.steps if steps is None else steps
        pairs, seconds, shares = [], [], []
        verdict = ""
        with self.pipe.plugins(*plugins) if plugins else nullcontext():
            for i in range(len(self.prompts)):
                picture, took = self.picture(i, used)
                if self.look is not None:
                    self.look(i, picture)
                pairs.append((picture, self.truth[i]))
                seconds.append(took)
                report = self.pipe.plugin_report() if plugins else None
                shares.append(used / self.steps * (1.0 if report is None else work_of(report)))
                verdict = "" if report is None else report.verdict
        decibels = [min(LARGEST_PSNR, float(psnr(a, b))) for a, b in pairs]
        frames = [(a.flatten(0, 1), b.flatten(0, 1)) for a, b in pairs]
        return Outcome(
            work=statistics.fmean(shares),
            psnr=statistics.fmean(decibels),
            worst_psnr=min(decibels),
            distance=statistics.fmean(float(feature_distance(a, b).mean()) for a, b in frames),
            seconds=statistics.median(seconds),
            verdict=verdict,
        )


def work_of(report: Any) -> float:
    """Return the share of FLOPs that a run did, or of blocks where FLOPs are not known."""
    if report.flops_done is not None and report.flops_full:
        return float(report.flops_done / report.flops_full)
    return float(report.fraction)
