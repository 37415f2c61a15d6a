"""What a cache costs that never skips: the price of looking, on the reference model.

Every arm has a copy of the pipeline of its own, with its plugin attached once, as a user has; the
copies share their weights, because where a copy lies in memory makes up to 3 % of difference. The
arms run in turns on one prompt, in an order rotated by one from round to round; ratios to the plain
pipeline are taken within a round. CPU seconds of the process are printed too, because wall time on
a shared machine says little.

    python benchmarks/overhead.py --rounds 15
"""

import argparse
import copy
import statistics
import time
from typing import Any

import torch

from skipstep.pipelines.compare.comparison import Ratio
from skipstep.pipelines.compare.run import describe_machine
from skipstep.plugins import options

PLAIN = "no plugin"
# Each looks, learns and remembers like a working cache, and decides to compute at every step.
NEVER = ("easycache:threshold=1e-9", "fbcache:threshold=1e-9", "taylorseer:interval=1")
PROMPT = "a pizza, 3d style, on a blue background"


def stand_in() -> Any:
    """Return the reference pipeline with random weights: the same work, no picture."""
    from diffusers import AutoencoderTiny, PixArtTransformer2DModel

    from skipstep.pipelines.reference import autoencoder, denoiser
    from skipstep.pipelines.reference.load import ReferencePipeline
    from skipstep.pipelines.reference.recipe import find_recipe, load_recipe
    from skipstep.pipelines.reference.text import load_text_encoder, load_tokenizer

    torch.manual_seed(0)
    return ReferencePipeline(
        tokenizer=load_tokenizer(),
        text_encoder=load_text_encoder(torch.float32),
        vae=AutoencoderTiny(**autoencoder.CONFIG).eval(),
        transformer=PixArtTransformer2DModel(**load_recipe(find_recipe("picture")).denoiser).eval(),
        scheduler=denoiser.new_scheduler(),
    )


def sharing_copy(pipe: Any) -> Any:
    """Return a copy of the pipeline whose modules are its own and whose weights are not."""
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    shared = {id(t): t for part in modules for t in (*part.parameters(), *part.buffers())}
    return type(pipe)(**copy.deepcopy(pipe.components, shared))


def timed(pipe: Any, steps: int) -> tuple[float, float]:
    """Return wall and CPU seconds of one picture."""
    generator = torch.Generator("cpu").manual_seed(0)
    cpu_started, started = time.process_time(), time.perf_counter()
    pipe(PROMPT, num_inference_steps=steps, generator=generator, output_type="np")
    return time.perf_counter() - started, time.process_time() - cpu_started


def ratio_text(ratio: Ratio) -> str:
    """Write a ratio with its 95 % interval."""
    return f"{ratio.median:.3f} ({ratio.low or 0:.3f}-{ratio.high or 0:.3f})"


def main() -> None:
    """Measure rounds and print medians and ratios."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--random", action="store_true", help="random weights instead of trained")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.random:
        pipe = stand_in()
    else:
        from skipstep.pipelines.reference import load_reference

        pipe = load_reference()
    pipes = {name: sharing_copy(pipe) for name in (PLAIN, *NEVER)}
    for name, own in pipes.items():
        own.set_progress_bar_config(disable=True)
        if name != PLAIN:
            own.enable_plugin(options.build(*options.parse_spec(name)))
        timed(own, arguments.steps)
        if name != PLAIN and own.plugin_report().computed != own.plugin_report().total:
            raise SystemExit(f"{name} skipped something: this measures caches that never skip")
    wall: dict[str, list[float]] = {name: [] for name in pipes}
    cpu: dict[str, list[float]] = {name: [] for name in pipes}
    order = list(pipes)
    for number in range(arguments.rounds):
        turn = number % len(order)
        for name in order[turn:] + order[:turn]:
            seconds, cpu_seconds = timed(pipes[name], arguments.steps)
            wall[name].append(seconds)
            cpu[name].append(cpu_seconds)
    machine = ", ".join(f"{key} {value}" for key, value in describe_machine(pipe).items())
    weights = "random" if arguments.random else "trained"
    print(f"{type(pipe).__name__} ({weights} weights), {arguments.steps} steps, {machine}")
    print(f"medians of {arguments.rounds} rounds; ratios to {PLAIN!r} within a round, 95 %")
    for name in pipes:
        seconds, cpu_seconds = statistics.median(wall[name]), statistics.median(cpu[name])
        line = f"{name:<26} {seconds:6.3f} s  {cpu_seconds:6.3f} CPU s"
        if name != PLAIN:
            line += f"  wall x {ratio_text(Ratio.of(ratios(wall, name)))}"
            line += f"  CPU x {ratio_text(Ratio.of(ratios(cpu, name)))}"
        print(line)


def ratios(seconds: dict[str, list[float]], name: str) -> list[float]:
    """Return how many times slower than the plain pipeline, one ratio a round."""
    return [own / plain for own, plain in zip(seconds[name], seconds[PLAIN], strict=True)]


if __name__ == "__main__":
    main()
