"""How the benchmark talks to a peer: job and answer as JSON files, a process of its own.

Peers patch classes, so nobody shares a process with another. A peer that crashes, hangs or writes
nonsense becomes an answer that says so.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

__all__ = ["Answer", "Job", "Measured", "ask", "read_answer", "write_answer"]

WORKER = "skipstep.benchmarks.peers.worker"


@dataclass(frozen=True)
class Job:
    """What a worker is asked: `driver` and `loader` are "module:function", `model` is what the
    loader is given.

    `scouts` says how many of the prompts, at the list's end, only choose: a setting that lies well
    behind its peer's own front there is not measured on the others. 0 measures everything.
    """

    peer: str
    driver: str
    package: str
    loader: str
    model: str
    stock_class: str
    settings: list[str]
    prompts: list[str]
    seeds: list[int]
    steps: int
    rounds: int
    threads: int
    scouts: int = 0


@dataclass
class Measured:
    """What one setting did; lists have one entry a prompt, the two of seconds one a round.

    `fraction` is the share of the denoiser's FLOPs that was computed, `psnr` is in dB (identical
    pictures count as 120), seconds are of this process's CPU. `cannot_run` says why nothing was
    measured; `behind` is set where the scouts left the setting out: decibels behind its own peer.
    """

    setting: str
    cannot_run: str | None = None
    behind: float | None = None
    fraction: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    feature_distance: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    baseline_seconds: list[float] = field(default_factory=list)


@dataclass
class Answer:
    """What a worker says: `digest` names the uncached pictures, to see that all had the same."""

    peer: str
    version: str
    steps: int
    digest: str
    denoiser_gflops: float
    results: list[Measured]


def ask(job: Job, path: Path, *, timeout: float | None = None) -> Answer:
    """Run a job in a process of its own; job, answer and log are kept beside `path`, a .json file.

    Never raises for what the peer does: its failure is what every setting's `cannot_run` says.
    """
    question = path.with_suffix(".job.json")
    question.write_text(json.dumps(asdict(job), indent=1), encoding="utf-8")
    path.unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", WORKER, str(question), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(job.threads)}
    log = path.with_suffix(".log")
    try:
        with log.open("w", encoding="utf-8") as stream:
            code = subprocess.run(
                command,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=timeout,
                check=False,
            ).returncode
    except subprocess.TimeoutExpired:
        return failed(job, f"not done after {timeout:.0f} s")
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return failed(job, f"its process ended with code {code}: {lines[-1] if lines else ''}")
    try:
        answer = read_answer(path)
    except (OSError, ValueError) as error:
        return failed(job, f"its answer cannot be read: {error}")
    if [result.setting for result in answer.results] != job.settings:
        return failed(job, "its answer is about other settings than it was asked")
    return answer


def failed(job: Job, reason: str) -> Answer:
    """Return the answer of a peer that gave none."""
    results = [Measured(setting, cannot_run=reason) for setting in job.settings]
    return Answer(job.peer, "", job.steps, "", 0.0, results)


def write_answer(answer: Answer, path: Path) -> None:
    """Write an answer as JSON."""
    text = json.dumps(asdict(answer), indent=1, allow_nan=False)
    path.write_text(text, encoding="utf-8")


def read_answer(path: Path) -> Answer:
    """Read an answer; raises ValueError when the file is not one."""
    try:
        answer = TypeAdapter(Answer).validate_json(path.read_bytes(), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path.name}: {place or 'top'}: {first['msg']}") from None
    for result in answer.results:
        if (
            result.cannot_run is None
            and result.behind is None
            and not (
                result.psnr
                and len(result.psnr) == len(result.fraction) == len(result.feature_distance)
            )
        ):
            raise ValueError(f"{path.name}: {result.setting}: lists of different lengths")
        if len(result.seconds) != len(result.baseline_seconds):
            raise ValueError(f"{path.name}: {result.setting}: seconds without their baseline")
    return answer
