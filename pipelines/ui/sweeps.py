"""A sweep: one option of a plugin over some values, perhaps against a second one, in one grid.

Every cell is one run on the first prompts and seeds. The first is the plain one, which all others
are measured against; plain runs with fewer steps are the line to beat. One run each: `compare` is
what measures times.
"""

import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from torch import Tensor

from skipstep.files.artefact import refusing_files
from skipstep.pipelines.batch.stopping import Stop
from skipstep.pipelines.compare.run import silent
from skipstep.pipelines.pictures import to_bytes
from skipstep.pipelines.progress import Progress
from skipstep.pipelines.tune.trial import LARGEST_PSNR, Outcome, Trier
from skipstep.pipelines.ui.limits import Limits, read_name, read_prompts, read_settings
from skipstep.pipelines.ui.long_runs import Part, run_with_model
from skipstep.pipelines.ui.streams import Tell
from skipstep.pipelines.ui.studio import Studio, call_beside_prompt
from skipstep.pipelines.ui.watching import watched
from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import build, show

__all__ = ["Cell", "read_values", "run_sweep"]

MOST_VALUES = 8
LONGEST_VALUES = 2000
FEWER = (0.4, 0.55, 0.7, 0.85)


@dataclass(frozen=True)
class Cell:
    """One run of a sweep; `options` is empty for the plain pipeline with `steps` steps."""

    name: str
    options: dict[str, Any]
    steps: int
    outcome: Outcome
    picture: NDArray[np.uint8]

    @property
    def is_equal(self) -> bool:
        """Say that all pictures are those of the plain pipeline, bit for bit."""
        return self.outcome.worst_psnr >= LARGEST_PSNR

    def to_dict(self) -> dict[str, Any]:
        """Return plain data, the picture aside."""
        return {
            "name": self.name,
            "options": self.options,
            "steps": self.steps,
            "work": self.outcome.work,
            "psnr": self.outcome.psnr,
            "feature_distance": self.outcome.distance,
            "seconds": self.outcome.seconds,
        }


def read_values(what: str, text: object) -> list[Any]:
    """Read "0.02, 0.05, 0.1" as values; brackets are kept together, as in a YAML list.

    >>> read_values("values", "1, 2.5, true")
    [1, 2.5, True]

    Raises PluginError.
    """
    if not isinstance(text, str) or len(text) > LONGEST_VALUES:
        raise PluginError(f"{what} are {show(text)}: write them as 0.02, 0.05, 0.1")
    try:
        values = yaml.safe_load(f"[{text}]")
    except (yaml.YAMLError, RecursionError, ValueError):
        raise PluginError(f"{what} {show(text)} cannot be read: write 0.02, 0.05, 0.1") from None
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_VALUES:
        count = len(values) if isinstance(values, list) else 0
        raise PluginError(f"{count} {what} were given: 1 to {MOST_VALUES} are allowed")
    return values


def read_grid(
    plugin: object, option: object, values: object, second: object, second_values: object
) -> list[dict[str, Any]]:
    """Return the options of every cell, checked.

    Raises PluginError.
    """
    name = read_name("plugin", plugin)
    axes = {read_name("option", option): read_values("values", values)}
    if second not in (None, ""):
        other = read_name("second option", second)
        if other in axes:
            raise PluginError(f"the option {other!r} is on both axes: choose two")
        axes[other] = read_values("second values", second_values)
    cells = [dict(zip(axes, chosen, strict=True)) for chosen in itertools.product(*axes.values())]
    with refusing_files():
        for cell in cells:
            build(name, cell)
    return cells


def run_sweep(
    studio: Studio,
    limits: Limits,
    *,
    model: str,
    plugin: object,
    option: object,
    values: object,
    second: object = None,
    second_values: object = "",
    prompts: object,
    steps: object,
    seed: object,
) -> Iterator[Any]:
    """Yield Steps, a Part with each Cell as it comes, and a Result with all of them.

    Raises PluginError for what is not allowed.
    """
    grid = read_grid(plugin, option, values, second, second_values)
    name = read_name("plugin", plugin)
    wanted = read_prompts(prompts, limits)
    row = read_settings({"prompt": wanted[0], "steps": steps, "seed": seed}, limits)
    fewer = sorted({max(2, round(row.steps * share)) for share in FEWER} - {row.steps})
    calls = (len(grid) + len(fewer) + 1) * len(wanted)
    if calls > limits.calls:
        raise PluginError(
            f"{len(grid)} cells on {len(wanted)} prompts are {calls} pipeline calls: at most "
            f"{limits.calls} are allowed here"
        )

    def action(pipe: Any, progress: Progress, stop: Stop, tell: Tell) -> list[Cell]:
        call = call_beside_prompt(pipe, row)
        call |= watched(pipe, stop, lambda step, latents: None)
        seeds = range(row.seed, row.seed + len(wanted))
        pictures: list[Tensor] = []
        trier = Trier(
            pipe,
            wanted,
            seeds,
            row.steps,
            call,
            before=stop.check,
            look=lambda i, picture: pictures.append(picture) if i == 0 else None,
        )
        total = len(grid) + len(fewer) + 1
        found: list[Cell] = []
        with silent(pipe):
            progress(0, total, f"{row.steps} plain steps")
            trier.make_truth()
            seconds = statistics.median(trier.plain_seconds)
            equal = Outcome(1.0, LARGEST_PSNR, LARGEST_PSNR, 0.0, seconds)
            found.append(
                Cell(f"{row.steps} plain steps", {}, row.steps, equal, to_bytes(trier.truth[0])[0])
            )
            tell(Part(found[-1]))
            for options, count in [
                *((options, row.steps) for options in grid),
                *(({}, count) for count in fewer),
            ]:
                words = cell_name(options) if options else f"{count} plain steps"
                progress(len(found), total, words)
                chosen = [build(name, options)] if options else []
                pictures.clear()
                outcome = trier.run(chosen, count)
                picture = to_bytes(pictures[0])[0]
                found.append(Cell(words, options, count, outcome, picture))
                tell(Part(found[-1]))
        return found

    return run_with_model(studio, model, action)


def cell_name(options: dict[str, Any]) -> str:
    """Return the options of a cell in a few words.

    >>> cell_name({"threshold": 0.1, "delta": True})
    'threshold 0.1, delta true'
    """
    return ", ".join(f"{option} {json.dumps(value)}" for option, value in options.items())
