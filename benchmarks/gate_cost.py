"""What deciding and forecasting cost: the CPU time of a cache's own arithmetic, by preset.

    python -m benchmarks.gate_cost --rounds 5

Every preset runs as it comes on the reference model, in turns with the plain pipeline. Timed from
inside are the gate (`decide`, `observe`), the forecasts of skipped parts, and what is kept of
computed ones; the rest of the engine is in benchmarks/overhead.py. Shares are of one uncached
denoiser call of the same round, median over rounds, and averaged over all steps of the run: a
cache pays its forecasts on skips only. "MB" is what forecasts read and write a skipped step, which
is what they cost on any machine: values weighed plus one, times their size.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skipstep.benchmarks.overhead import PROMPT, sharing_copy
from skipstep.caching.passes import Memory
from skipstep.caching.spans.guidance import Pairs
from skipstep.pipelines.compare.run import describe_machine
from skipstep.pipelines.reference import load_reference
from skipstep.plugins import catalog
from skipstep.plugins.errors import PluginError
from skipstep.plugins.lifecycle import why_not
from skipstep.plugins.profile import profile

GOAL = 0.015


@dataclass
class Spent:
    """CPU seconds of one run by part, and the bytes that its forecasts moved."""

    gate: float = 0.0
    forecast: float = 0.0
    kept: float = 0.0
    model: float = 0.0
    moved: int = 0


@contextmanager
def watching(spent: Spent, gate: type | None, denoiser: Any) -> Iterator[None]:
    """Add what is spent inside to `spent`."""
    names: list[tuple[Any, str, str]] = [
        (Memory, "guess", "forecast"),
        (Memory, "keep", "kept"),
        (Pairs, "delta", "forecast"),
        (Pairs, "note", "kept"),
    ]
    names += [(gate, name, "gate") for name in ("decide", "observe")] if gate else []
    before = [(owner, name, owner.__dict__[name]) for owner, name, _ in names]
    for owner, name, part in names:
        setattr(owner, name, timed(owner.__dict__[name], part, spent))
    plain = denoiser.forward
    denoiser.forward = timed(plain, "model", spent)
    try:
        yield
    finally:
        del denoiser.forward
        for owner, name, function in before:
            setattr(owner, name, function)


def timed(function: Callable[..., Any], part: str, spent: Spent) -> Callable[..., Any]:
    """Return the function with its thread's CPU time added to a part."""

    def run(*args: Any, **kwargs: Any) -> Any:
        started = time.thread_time()
        result = function(*args, **kwargs)
        setattr(spent, part, getattr(spent, part) + time.thread_time() - started)
        if part == "forecast" and isinstance(result, Tensor):
            anchors = getattr(args[0], "anchors", 1)
            spent.moved += (anchors + 1) * result.numel() * result.element_size()
        return result

    return run


def presets(pipe: Any) -> dict[str, Any]:
    """Return the caches that serve the pipeline as they come, by name."""
    found, profiled = {}, profile(pipe)
    for name in catalog.names():
        try:
            kind = catalog.load(name)
            if kind.kind == "cache" and why_not(kind(), profiled) is None:
                found[name] = kind()
        # One that needs a file or a calibration.
        except (PluginError, ValueError, TypeError):
            continue
    return found


def main() -> None:
    """Measure rounds and print one line a preset."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--only", nargs="+", help="some presets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipe = load_reference()
    plain = sharing_copy(pipe)
    arms: dict[str | None, Any] = {None: plain}
    for preset, plugin in presets(pipe).items():
        if arguments.only is None or preset in arguments.only:
            arms[preset] = sharing_copy(pipe)
            arms[preset].enable_plugin(plugin)
    rounds: dict[str | None, list[Spent]] = {name: [] for name in arms}
    for number in range(arguments.rounds + 1):
        for name, own in arms.items():
            spent = Spent()
            own.set_progress_bar_config(disable=True)
            gate = None if name is None else type(catalog.load(name)().parts().gate)
            with watching(spent, gate, own.transformer):
                noise = torch.Generator("cpu").manual_seed(0)
                own(PROMPT, num_inference_steps=arguments.steps, generator=noise, output_type="np")
            # The first round loads, learns and counts FLOPs.
            if number:
                rounds[name].append(spent)
    machine = ", ".join(f"{key} {value}" for key, value in describe_machine(pipe).items())
    print(f"{arguments.steps} steps, {arguments.rounds} rounds, {machine}")
    step = statistics.median(spent.model / arguments.steps for spent in rounds[None])
    print(f"one uncached denoiser call: {step * 1e3:.1f} CPU ms")
    print(f"{'preset':<14}  gate   forecast  kept   gate + forecast   MB a skip")
    for name, own in arms.items():
        if name is None:
            continue
        pairs = list(zip(rounds[name], rounds[None], strict=True))
        parts = [share(pairs, part) for part in (["gate"], ["forecast"], ["kept"])]
        both = share(pairs, ["gate", "forecast"])
        skips = sum(call.computed < len(call.choices) for call in own.plugin_report().calls)
        moved = rounds[name][-1].moved / max(1, skips) / 1e6
        columns = " ".join(f"{part:7.2%}" for part in parts)
        over = "" if both <= GOAL else "over"
        print(f"{name:<14} {columns} {both:11.2%} {over:<4} {moved:10.2f}")


def share(pairs: Sequence[tuple[Spent, Spent]], parts: Sequence[str]) -> float:
    """Return the median over rounds of what parts of a run cost beside the uncached denoiser."""
    shares = [sum(getattr(s, part) for part in parts) / plain.model for s, plain in pairs]
    return float(statistics.median(shares))


if __name__ == "__main__":
    main()
