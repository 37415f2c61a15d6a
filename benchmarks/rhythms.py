"""Where to start a rhythm: warm-up x last step x interval of caches that compute every N-th step.

python -m benchmarks.rhythms [--steps 28] [--prompts 8]

Fidelity is the PSNR to the uncached picture of the same seed on the reference model, its mean over
prompts; work is the share of the steps that is computed.
"""

import argparse
from itertools import product
from typing import Any

import torch

from skipstep.benchmarks.forecasters import draw
from skipstep.pipelines.metrics.fidelity import psnr
from skipstep.pipelines.reference.load import load_reference
from skipstep.pipelines.reference.prompts import load_prompts

PRESETS = ("abcache", "taylorseer", "fora")
WARMUPS, FINALS, INTERVALS = (2, 3, 4, 5, 7), (0, 1), (2, 3, 4)
FIRST_PROMPT = 20
"""Behind the prompts that the demo and the schedules use."""


def main() -> None:
    """Print one row a setting, most work first."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=28, help="of an uncached run")
    parser.add_argument("--prompts", type=int, default=8, help="how many")
    parser.add_argument("--presets", nargs="*", default=PRESETS, help="which caches")
    given = parser.parse_args()
    torch.set_num_threads(1)
    pipe: Any = load_reference()
    pipe.set_progress_bar_config(disable=True)
    known = [entry["prompt"] for entry in load_prompts()]
    prompts = known[FIRST_PROMPT : FIRST_PROMPT + given.prompts]
    plain = draw(pipe, prompts, given.steps)
    rows = []
    for preset, warmup, final, interval in product(given.presets, WARMUPS, FINALS, INTERVALS):
        pipe.enable_plugin(preset, warmup_steps=warmup, final_steps=final, interval=interval)
        image = draw(pipe, prompts, given.steps)
        work = pipe.plugin_report().fraction
        rows.append((preset, -work, float(psnr(image, plain).mean()), warmup, final, interval))
        pipe.disable_plugins()
    print(
        "| preset | computed | PSNR | warm-up | last steps | interval |\n|---|---|---|---|---|---|"
    )
    for preset, work, decibels, warmup, final, interval in sorted(rows):
        print(f"| {preset} | {-work:.0%} | {decibels:.1f} dB | {warmup} | {final} | {interval} |")


if __name__ == "__main__":
    main()
