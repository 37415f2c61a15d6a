"""One peer in a process of its own: reads a job (JSON), measures every setting, writes the answer.

    python -m skipstep.benchmarks.peers.worker job.json answer.json

Each setting gets a copy of the pipeline that is a class of its own, with a denoiser of its own.
Pictures and FLOPs come from one call a prompt. Settings on the peer's own front are then timed, in
further calls that take turns with the uncached pipeline.
"""

import copy
import gc
import hashlib
import importlib
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from skipstep.benchmarks.peers.count import FlopCount, denoiser_share
from skipstep.benchmarks.peers.drivers import Call, CannotRun
from skipstep.benchmarks.peers.fronts import Point, at_speed, front
from skipstep.benchmarks.peers.protocol import Answer, Job, Measured, write_answer
from skipstep.pipelines.metrics.fidelity import feature_distance, psnr
from skipstep.pipelines.pictures import read_pictures

__all__ = ["measure"]


# Identical pictures count as this many decibels, as in verdicts.py.
CAP = 120.0
# So many decibels behind its own peer's front on the scouts, a setting is not measured further.
MARGIN = 1.5


def resolve(name: str) -> Any:
    """Import "module:attribute"."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def own_copy(pipe: Any, stock_class: str) -> Any:
    """Return a pipeline that shares everything but its denoiser, and has a class of its own."""
    parts = dict(pipe.components)
    for name in ("transformer", "unet"):
        if parts.get(name) is not None:
            parts[name] = copy.deepcopy(parts[name])
    parts["scheduler"] = copy.deepcopy(parts["scheduler"])
    copied = type(stock_class, (type(pipe),), {})(**parts)
    copied.set_progress_bar_config(disable=True)
    return copied


class Bench:
    """A job's model, its uncached pictures, and how a setting is measured against them.

    Rows are prompts; the scouts come after those that are measured.
    """

    def __init__(self, job: Job) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        self.driver = resolve(job.driver)
        self.pipe = resolve(job.loader)(job.model)
        self.pipe.set_progress_bar_config(disable=True)
        self.less = max(1, job.steps // 2)
        _, self.fewer = self.counted(self.pipe, 0, self.less)
        uncached = [self.counted(self.pipe, row) for row in range(len(job.prompts))]
        self.truths = [pictures for pictures, _ in uncached]
        self.full = uncached[0][1]
        measured = len(job.prompts) - job.scouts
        self.rows, self.scouts = range(measured), range(measured, len(job.prompts))

    def make(self, call: Call, row: int, steps: int | None = None) -> torch.Tensor:
        """Make a row's picture."""
        noise = torch.Generator("cpu").manual_seed(self.job.seeds[row])
        made = call(
            prompt=self.job.prompts[row],
            num_inference_steps=steps or self.job.steps,
            generator=noise,
            output_type="np",
        )
        return read_pictures(made)

    def counted(self, call: Call, row: int, steps: int | None = None) -> tuple[torch.Tensor, int]:
        """Make a row's picture, and count its FLOPs."""
        with FlopCount() as count:
            pictures = self.make(call, row, steps)
        return pictures, count.total

    def switched_on(self, setting: str) -> Call:
        """Return what to call: the setting on a pipeline of its own."""
        call: Call = self.driver(own_copy(self.pipe, self.job.stock_class), setting, self.job.steps)
        return call

    def look(self, setting: str, rows: Sequence[int]) -> Measured:
        """Make the rows' pictures with a setting; one that does not run is told, not raised."""
        result = Measured(setting)
        try:
            call = self.switched_on(setting)
            for row in rows:
                pictures, total = self.counted(call, row)
                if not pictures.isfinite().all():
                    raise CannotRun("its pictures hold values that are not numbers")
                share = denoiser_share(
                    total, full=self.full, fewer=self.fewer, steps=self.job.steps, less=self.less
                )
                truth = self.truths[row]
                result.fraction.append(share)
                result.psnr.append(min(CAP, float(psnr(pictures, truth)[0])))
                distances = feature_distance(pictures.flatten(0, 1), truth.flatten(0, 1))
                result.feature_distance.append(float(distances.mean()))
        except CannotRun as refusal:
            result.cannot_run = str(refusal)
        # Someone else's method can fail in any way; the others are to be measured all the same.
        except Exception as error:
            result.cannot_run = f"{type(error).__name__}: {error}"
        gc.collect()
        return result

    def clock(self, result: Measured) -> None:
        """Time a setting that ran, in turns with the uncached pipeline, in CPU seconds: other
        processes on the machine do not enter, and with one thread nothing else is left out.
        """
        call = self.switched_on(result.setting)
        self.make(call, 0)
        for number in range(self.job.rounds):
            row = self.rows[number % len(self.rows)]
            turns = [(self.pipe, result.baseline_seconds), (call, result.seconds)]
            for each, seconds in turns if number % 2 == 0 else reversed(turns):
                started = time.process_time()
                self.make(each, row)
                seconds.append(time.process_time() - started)


def measure(job: Job, keep: Callable[[Answer], None] = lambda _: None) -> Answer:
    """Measure a job: scouts choose, the settings that are left are measured, their front is timed.

    `keep` is given what there is after each setting.
    """
    bench = Bench(job)
    seen = b"".join(bench.truths[row].numpy().tobytes() for row in bench.rows)
    answer = Answer(
        peer=job.peer,
        version=version_of(job.package),
        steps=job.steps,
        digest=hashlib.sha256(seen).hexdigest()[:16],
        denoiser_gflops=(bench.full - bench.fewer) * job.steps / (job.steps - bench.less) / 1e9,
        results=[],
    )
    scouted = {}
    if job.scouts:
        for setting in job.settings:
            scouted[setting] = bench.look(setting, bench.scouts)
            say(job, "scout", scouted[setting])
    behind = behind_own_front(list(scouted.values()))
    for setting in job.settings:
        if behind.get(setting, 0.0) > MARGIN:
            result = Measured(setting, behind=behind[setting])
        elif setting in scouted and scouted[setting].cannot_run is not None:
            result = scouted[setting]
        else:
            result = bench.look(setting, bench.rows)
            say(job, "measured", result)
        answer.results.append(result)
        keep(answer)
    ran = [each for each in answer.results if each.psnr and each.cannot_run is None]
    kept = {each.setting for each in front([point(each) for each in ran])}
    for result in ran:
        if job.rounds and result.setting in kept:
            bench.clock(result)
            keep(answer)
    return answer


def point(result: Measured) -> Point:
    """Return a setting as speed by FLOPs and decibels."""
    speed = len(result.fraction) / max(1e-9, sum(result.fraction))
    return Point("", result.setting, speed, tuple(result.psnr))


def behind_own_front(results: Sequence[Measured]) -> dict[str, float]:
    """Return by setting how many decibels it lies under the front of all of them.

    Beyond the front's ends, and for what did not run, that is 0.
    """
    points = [point(each) for each in results if each.cannot_run is None]
    best = front(points)
    found = {each.setting: 0.0 for each in results}
    for each in points:
        there = at_speed(best, each.speed)
        if there is not None:
            found[each.setting] = sum(there) / len(there) - each.mean
    return found


def say(job: Job, what: str, result: Measured) -> None:
    """Write what came of a setting to the log."""
    line = f"{job.peer} {job.steps} {what} {result.setting} {told(result)}"
    print(line, file=sys.stderr, flush=True)


def told(result: Measured) -> str:
    """Say what came of a setting, for the log."""
    if result.cannot_run is not None:
        return f"cannot run: {result.cannot_run}"
    count = len(result.psnr)
    return f"{sum(result.fraction) / count:.3f} {sum(result.psnr) / count:.2f} dB"


def version_of(package: str) -> str:
    """Return a distribution's version; ours may run from its source."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "from source" if package == "skipstep" else "not installed"


def main() -> None:
    """Read the job, measure, write the answer."""
    logging.disable(logging.WARNING)
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    path = Path(sys.argv[2])
    write_answer(measure(job, lambda answer: write_answer(answer, path)), path)


if __name__ == "__main__":
    main()
