"""Compare plugins with the uncached pipeline on the same prompts and seeds: savings and costs.

How it is measured:
- Every arm makes the same pictures (prompt, seed) as the uncached arm, which is always there.
- Timings are interleaved: each batch of prompts runs through all arms in an order rotated by one
  from round to round, so that a machine that slows down slows all of them; ratios are taken within
  a round, then their median.
- A first round is not timed (allocations, lazy imports). Its uncached pictures are compared with
  those of the next round, which tells whether the pipeline repeats itself at all.
- Attaching is not timed, nor is a run of two steps after it: a plugin learns the model on its first
  pass, and a user attaches it once.
- In a second pass the "fewer steps at equal cost" arms (see arms.py) run beside the uncached arm
  again.
- Fidelity is measured to the uncached picture, on floats before they are rounded to 8 bits
  (metrics/fidelity.py).
"""

import inspect
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import metadata
from typing import Any

import torch

from skipstep.pipelines.compare.arms import BASELINE, Arm, read_arms
from skipstep.pipelines.compare.comparison import Comparison
from skipstep.pipelines.compare.tally import (
    Batch,
    Taken,
    TextScore,
    add_quality,
    add_timing,
    match_costs,
    start_result,
)
from skipstep.pipelines.compare.verdicts import judge
from skipstep.pipelines.metrics.fidelity import psnr
from skipstep.pipelines.pictures import read_pictures, to_bytes
from skipstep.pipelines.progress import Progress
from skipstep.plugins.errors import PluginError
from skipstep.plugins.lifecycle import manager_of

__all__ = ["Progress", "TextScore", "compare"]

LEARNING_STEPS = 2
# What compare sets itself in the pipeline's call.
OURS = ("class_labels", "generator", "num_inference_steps", "output_type", "prompt", "return_dict")


def compare(
    pipe: Any,
    prompts: Sequence[Any],
    arms: Any = None,
    *,
    steps: int = 20,
    seed: int = 0,
    seeds: Sequence[int] | None = None,
    fewer_steps: bool = True,
    repeats: int = 1,
    batch_size: int = 1,
    keep_pictures: int = 32,
    text_score: TextScore | None = None,
    progress: Progress | None = None,
    **call: Any,
) -> Comparison:
    """Run every arm on every prompt and return what each saved and cost.

    Args:
        pipe: a diffusers pipeline that makes pictures or videos; plugins that are on stay out of it
            meanwhile.
        prompts: one text a picture (one class label for class-conditional pipelines).
        arms: recipes such as "easycache:threshold=0.08", options objects, lists of them switched on
            together, or a mapping from a name to one of these (read_arms in arms.py). None is what
            is on now. The uncached arm comes on its own.
        steps: denoising steps of the uncached arm and of the plugins.
        seed: prompt i is made from seed + i, unless `seeds` gives one seed a prompt.
        fewer_steps: also run, for every arm, the uncached pipeline with as many steps as cost the
            same.
        repeats: how often each round is timed.
        batch_size: prompts in one pipeline call.
        keep_pictures: of how many prompts the pictures are kept for the page and the sheet.
        text_score: pictures in [-1, 1] and prompts -> one number each, higher is better. The
            reference models of pictures are scored by metrics/text.py unless another function is
            given.
        progress: called with the calls done, the calls of this pass and the name of the arm.
        call: passed on to the pipeline, for example guidance_scale=3.0.

    Raises PluginError for unusable arguments and arms.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    seeds = [seed + i for i in range(len(prompts))] if seeds is None else list(seeds)
    check_arguments(prompts, seeds, call, steps=steps, repeats=repeats, batch_size=batch_size)
    chosen = read_arms([active_plugins(pipe)] if arms is None else arms, steps)
    baseline = Arm(BASELINE, "baseline", steps)
    batches = [
        Batch(list(prompts[i : i + batch_size]), seeds[i : i + batch_size])
        for i in range(0, len(prompts), batch_size)
    ]
    outcome = Comparison(
        pipeline=type(pipe).__name__,
        prompts=[str(prompt) for prompt in prompts],
        seeds=seeds,
        steps=steps,
        batch_size=batch_size,
        machine=describe_machine(pipe),
        load=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )
    results = {arm.name: start_result(arm) for arm in (baseline, *chosen)}
    parameter = prompt_parameter(pipe)
    scorer = own_text_score(pipe) if text_score is None else text_score
    started = time.perf_counter()

    def take(arm: Arm, batch: Batch) -> Taken:
        return run_arm(pipe, arm, batch, {parameter: batch.prompts, **call})

    def run_pass(running: list[Arm], *, is_first: bool) -> None:
        for number, taken in enumerate(rounds(take, running, batches * repeats, progress)):
            truth = taken[BASELINE]
            if is_first and number == 0:
                again = psnr(warm_up[BASELINE].pictures, truth.pictures)
                outcome.repeat_psnr = float(again.min())
            for name, run in taken.items():
                add_timing(results[name], run, truth)
                if number < len(batches) and (is_first or name != BASELINE):
                    add_quality(results[name], run, truth, batches[number], scorer)
                    kept = outcome.pictures.setdefault(name, [])
                    kept += to_bytes(run.pictures)[: keep_pictures - len(kept)]

    with silent(pipe), bare(pipe):
        warm_up = {arm.name: take(arm, batches[0]) for arm in (baseline, *chosen)}
        run_pass([baseline, *chosen], is_first=True)
        if fewer_steps and (beside := match_costs(results, chosen)):
            run_pass([baseline, *beside], is_first=False)

    outcome.arms = list(results.values())
    for result in outcome.arms:
        if result.kind == "plugins":
            result.verdict = judge(result, results.get(result.equal_cost or ""))
    outcome.seconds = time.perf_counter() - started
    return outcome


def check_arguments(
    prompts: Sequence[Any],
    seeds: Sequence[int],
    call: Mapping[str, Any],
    *,
    steps: int,
    repeats: int,
    batch_size: int,
) -> None:
    """Raise PluginError for what cannot be compared."""
    if len(prompts) == 0:
        raise PluginError("compare: no prompts given: give at least one, better a dozen or more")
    if len(seeds) != len(prompts):
        raise PluginError(
            f"compare: {len(seeds)} seeds for {len(prompts)} prompts: give one seed a prompt, "
            "or seed=0 alone"
        )
    for name, value in (("steps", steps), ("repeats", repeats), ("batch_size", batch_size)):
        if value < 1:
            raise PluginError(f"compare: {name}={value} is not allowed: must be 1 or more")
    for name in OURS:
        if name in call:
            raise PluginError(
                f"compare: {name} cannot be passed on, compare sets it itself "
                "(use prompts, steps, seed or seeds)"
            )


def rounds(
    take: Callable[[Arm, Batch], Taken],
    running: list[Arm],
    batches: list[Batch],
    progress: Progress | None,
) -> Iterator[dict[str, Taken]]:
    """Run all arms on each batch, in an order rotated by one from batch to batch."""
    for number, batch in enumerate(batches):
        turn = number % len(running)
        taken = {}
        for place, arm in enumerate(running[turn:] + running[:turn]):
            if progress is not None:
                progress(number * len(running) + place, len(batches) * len(running), arm.name)
            taken[arm.name] = take(arm, batch)
        yield taken


def run_arm(pipe: Any, arm: Arm, batch: Batch, call: Mapping[str, Any]) -> Taken:
    """Make one batch of pictures with the arm's plugins on; attaching them is not timed."""
    on_gpu = device_of(pipe).type == "cuda"
    with pipe.plugins(*arm.plugins) if arm.plugins else nullcontext():
        if arm.plugins:
            pipe(
                **call,
                num_inference_steps=learning_steps(arm),
                generator=generators(batch),
                output_type="np",
            )
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        noise = generators(batch)
        cpu_started, started = time.process_time(), time.perf_counter()
        result = pipe(**call, num_inference_steps=arm.steps, generator=noise, output_type="np")
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        cpu_seconds = time.process_time() - cpu_started
        report = pipe.plugin_report() if arm.plugins else None
    return Taken(
        pictures=read_pictures(result),
        seconds=seconds / len(batch.seeds),
        cpu_seconds=cpu_seconds / len(batch.seeds),
        peak_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        report=report,
    )


def learning_steps(arm: Arm) -> int:
    """Return how many steps teach the arm's plugins the model: two, unless one takes no others."""
    only = (getattr(plugin, "only_steps", lambda: None)() for plugin in arm.plugins)
    return next((steps for steps in only if steps is not None), LEARNING_STEPS)


def generators(batch: Batch) -> list[torch.Generator]:
    """Return one generator a picture; those of the CPU give every device the same noise."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in batch.seeds]


def own_text_score(pipe: Any) -> TextScore | None:
    """Return the scorer that is valid for this pipeline: only the reference models' is."""
    from skipstep.pipelines.reference.denoiser import ReferencePipeline
    from skipstep.pipelines.reference.unet import ReferenceUNetPipeline

    if not isinstance(pipe, ReferencePipeline | ReferenceUNetPipeline):
        return None
    from skipstep.pipelines.metrics.text import text_score

    return text_score


def prompt_parameter(pipe: Any) -> str:
    """Return the name of the argument that takes the prompts."""
    try:
        parameters = inspect.signature(type(pipe).__call__).parameters
    except (TypeError, ValueError):
        return "prompt"
    return (
        "class_labels" if "class_labels" in parameters and "prompt" not in parameters else "prompt"
    )


def device_of(pipe: Any) -> torch.device:
    """Return the device the pipeline runs on."""
    device = getattr(pipe, "_execution_device", None) or getattr(pipe, "device", None)
    return torch.device(device if device is not None else "cpu")


def describe_machine(pipe: Any) -> dict[str, str]:
    """Return what a reader must know to repeat the timings."""
    device = device_of(pipe)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type} ({torch.get_num_threads()} of {os.cpu_count()} threads)"
    return {
        "device": name,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": metadata.version("diffusers"),
        "dtype": str(getattr(pipe, "dtype", "")).removeprefix("torch."),
    }


def active_plugins(pipe: Any) -> list[Any]:
    """Return the plugins that are on; raise PluginError if there are none."""
    manager = manager_of(pipe)
    active = [handle.plugin for handle in manager.handles.values()] if manager else []
    if not active:
        raise PluginError(
            "compare: no plugin is on and no arms were given: enable one first, or name a recipe "
            'such as "easycache:threshold=0.08"'
        )
    return active


@contextmanager
def bare(pipe: Any) -> Iterator[None]:
    """Take the user's own plugins off for a while: they would be part of every arm."""
    manager = manager_of(pipe)
    before = [handle.plugin for handle in manager.handles.values()] if manager else []
    if manager is not None:
        manager.disable_all()
    try:
        yield
    finally:
        for plugin in before:
            pipe.enable_plugin(plugin)


@contextmanager
def silent(pipe: Any) -> Iterator[None]:
    """Hide the pipeline's progress bar for a while; modular ones cannot restore it and keep it."""
    if not hasattr(pipe, "progress_bar"):
        yield
        return
    before = getattr(pipe, "_progress_bar_config", None)
    pipe.set_progress_bar_config(**{**(before or {}), "disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipe._progress_bar_config
        else:
            pipe._progress_bar_config = before
