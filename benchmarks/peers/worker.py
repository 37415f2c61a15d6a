"""One peer in a process of its own: reads a job (JSON), measures every setting, writes the answer.

    python -m skipstep.benchmarks.peers.worker job.json answer.json

Each setting gets a copy of the
pipeline that is a class of its own, with a denoiser of its own; pictures and FLOPs come from one
call a prompt; times from further calls that take turns with the uncached pipeline.
"""

import copy
import gc
import hashlib
import importlib
import json
import logging
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from skipstep.benchmarks.peers.count import FlopCount, denoiser_share
from skipstep.benchmarks.peers.drivers import Call, CannotRun
from skipstep.benchmarks.peers.protocol import Answer, Job, Measured, write_answer
from skipstep.pipelines.metrics.fidelity import feature_distance, psnr
from skipstep.pipelines.pictures import read_pictures

__all__ = ["measure"]


# Identical pictures count as this many decibels, as in verdicts.py.
CAP = 120.0


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


def measure(job: Job, keep: Callable[[Answer], None] = lambda _: None) -> Answer:
    """Measure every setting of a job; a setting that does not run is told, not raised.

    `keep` is given what there is after each setting.
    """
    torch.set_num_threads(job.threads)
    pipe = resolve(job.loader)()
    pipe.set_progress_bar_config(disable=True)
    driver = resolve(job.driver)

    def make(call: Call, row: int, steps: int = job.steps) -> torch.Tensor:
        noise = torch.Generator("cpu").manual_seed(job.seeds[row])
        made = call(
            prompt=job.prompts[row],
            num_inference_steps=steps,
            generator=noise,
            output_type="np",
        )
        return read_pictures(made)

    def counted(call: Call, row: int, steps: int = job.steps) -> tuple[torch.Tensor, int]:
        with FlopCount() as count:
            pictures = make(call, row, steps)
        return pictures, count.total

    less = max(1, job.steps // 2)
    _, fewer = counted(pipe, 0, less)
    uncached = [counted(pipe, row) for row in range(len(job.prompts))]
    truths = [pictures for pictures, _ in uncached]
    full = uncached[0][1]

    answer = Answer(
        peer=job.peer,
        version=version_of(job.package),
        steps=job.steps,
        digest=hashlib.sha256(b"".join(t.numpy().tobytes() for t in truths)).hexdigest()[:16],
        denoiser_gflops=(full - fewer) * job.steps / (job.steps - less) / 1e9,
        results=[],
    )
    for setting in job.settings:
        result = Measured(setting)
        answer.results.append(result)
        try:
            call = driver(own_copy(pipe, job.stock_class), setting, job.steps)
            for row, truth in enumerate(truths):
                pictures, total = counted(call, row)
                share = denoiser_share(total, full=full, fewer=fewer, steps=job.steps, less=less)
                result.fraction.append(share)
                if not pictures.isfinite().all():
                    raise CannotRun("its pictures hold values that are not numbers")
                result.psnr.append(min(CAP, float(psnr(pictures, truth)[0])))
                distances = feature_distance(pictures.flatten(0, 1), truth.flatten(0, 1))
                result.feature_distance.append(float(distances.mean()))
            for number in range(job.rounds):
                row = number % len(job.prompts)
                turns = [(pipe, result.baseline_seconds), (call, result.seconds)]
                for each, seconds in turns if number % 2 == 0 else reversed(turns):
                    started = time.perf_counter()
                    make(each, row)
                    seconds.append(time.perf_counter() - started)
        except CannotRun as refusal:
            result.cannot_run = str(refusal)
        # Someone else's method can fail in any way; the others are to be measured all the same.
        except Exception as error:
            result.cannot_run = f"{type(error).__name__}: {error}"
        gc.collect()
        keep(answer)
        print(f"{job.peer} {job.steps} {setting} {told(result)}", file=sys.stderr, flush=True)
    return answer


def told(result: Measured) -> str:
    """Say what came of a setting, for the log."""
    if result.cannot_run is not None:
        return f"cannot run: {result.cannot_run}"
    count = len(result.psnr)
    return f"{sum(result.fraction) / count:.3f} {sum(result.psnr) / count:.2f} dB"


def version_of(package: str) -> str:
    """Return a distribution's version, or that it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def main() -> None:
    """Read the job, measure, write the answer."""
    logging.disable(logging.WARNING)
    job = Job(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    path = Path(sys.argv[2])
    write_answer(measure(job, lambda answer: write_answer(answer, path)), path)


if __name__ == "__main__":
    main()
