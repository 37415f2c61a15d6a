"""What batch generation costs beside the pipeline: cutting a large plan, and running small calls.

    python -m benchmarks.batch plan --rows 1000000    seconds, and the memory of a fresh process
    python -m benchmarks.batch overhead --rows 32     CPU seconds inside and outside the pipeline
    python -m benchmarks.batch sheet --output F --picture P     a comparison's pictures on one sheet

The overhead is what one job spends outside its pipeline calls: planning, checks, PNGs, metadata,
hashes, fsync, markers, manifests, report. It is measured on the reference model, in CPU seconds.
"""

import argparse
import json
import random
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from skipstep.pipelines.batch.job import Job, run_batch
from skipstep.pipelines.batch.plan import cut_plan, open_plan
from skipstep.pipelines.batch.ranks import Rank
from skipstep.pipelines.batch.rows import Row

THINGS = ("pizza", "red heart", "frog", "ghost", "alien", "hamburger", "strawberry", "watermelon")
SIZES = ("512x512", "768x512", "512x768", "1024x1024")


def write_prompts(path: Path, count: int) -> None:
    """Write rows of four sizes and two step counts, in random order."""
    choose = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            prompt = f"{' '.join(choose.choices(THINGS, k=8))}, 3d style, number {number}"
            row = {"prompt": prompt, "size": choose.choice(SIZES), "steps": choose.choice((20, 28))}
            file.write(json.dumps(row) + "\n")


def measure_plan(rows: int) -> None:
    """Cut a plan and open it again, as a resumed run does."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_prompts(folder / "prompts.jsonl", rows)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started, cpu_started = time.perf_counter(), time.process_time()
        plan = cut_plan(
            folder,
            folder / "prompts.jsonl",
            {},
            Row(id="", line=0, prompt="", seed=0),
            batch_size=8,
            shard_rows=64,
        )
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu_started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        opened_at = time.perf_counter()
        open_plan(folder, {})
        opened = time.perf_counter() - opened_at
        size = (folder / "plan.jsonl").stat().st_size
    print(f"{plan.rows} rows -> {len(plan.offsets)} shards, {size / 2**20:.0f} MiB of plan")
    print(f"cut in {seconds:.1f} s ({cpu:.1f} CPU s), opened and checked in {opened:.2f} s")
    print(
        f"peak {peak / 2**10:.0f} MiB, of which {before / 2**10:.0f} MiB before (torch, diffusers)"
    )


def measure_overhead(rows: int, steps: int, batch_size: int) -> None:
    """Run a job and compare the CPU seconds of its pipeline calls with those of the whole."""
    from skipstep.pipelines.reference.load import ReferencePipeline, load_reference

    class Timed(ReferencePipeline):
        """Adds up the CPU seconds of its calls."""

        seconds = 0.0

        def __call__(self, *given: Any, **named: Any) -> Any:
            started = time.process_time()
            try:
                return super().__call__(*given, **named)
            finally:
                Timed.seconds += time.process_time() - started

    torch.set_num_threads(1)
    pipe = Timed(**load_reference().components)
    prompts = [f"{THINGS[i % len(THINGS)]}, 3d style" for i in range(rows)]
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "prompts.txt"
        for number in range(2):
            # The first job warms up.
            source.write_text("\n".join(prompts if number else prompts[:batch_size]))
            job = Job(source, Path(name) / str(number), steps=steps, batch_size=batch_size)
            Timed.seconds, started = 0.0, time.process_time()
            run_batch(job, lambda: pipe, rank=Rank())
            total = time.process_time() - started
    extra = total - Timed.seconds
    print(f"{rows} rows of {steps} steps at 128 pixels, {batch_size} a call")
    print(f"job {total:.2f} CPU s, of which {Timed.seconds:.2f} in pipeline calls")
    print(f"beside them {extra / rows * 1000:.1f} CPU ms a picture, {extra / total:.2%} of the job")


def draw_sheet(output: Path, picture: Path, side: int = 96, margin: int = 168) -> None:
    """Put the pictures of `skipstep batch --task compare` on one sheet, a column a row."""
    from PIL import Image, ImageDraw

    rows = [json.loads(line) for line in (output / "index.jsonl").open()]
    arms = ["uncached", *json.loads((output / "report.json").read_text())["arms"]]
    text, gap = 16, 4
    size = (margin + len(rows) * (side + gap), text + len(arms) * (side + text))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for number, name in enumerate(arms):
        top = text + number * (side + text)
        pen.text((4, top + side // 2), name, fill="black")
        for column, row in enumerate(rows):
            left = margin + column * (side + gap)
            ending = f".arm{number}.png" if number else ".png"
            with Image.open((output / row["file"]).with_suffix(ending)) as drawn:
                sheet.paste(drawn.convert("RGB").resize((side, side)), (left, top))
            psnr = row["figures"].get(f"arm{number}.psnr")
            if number:
                words = "the same" if psnr is None else f"{psnr:.1f} dB"
                pen.text((left, top + side + 1), words, fill="black")
            else:
                pen.text((left, 2), row["id"], fill="black")
    sheet.save(picture)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("what", choices=["plan", "overhead", "sheet"])
    parser.add_argument("--rows", type=int, help="1,000,000 for plan, 32 for overhead")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("out/compare"))
    parser.add_argument("--picture", type=Path, default=Path("docs/batch/compare.png"))
    arguments = parser.parse_args()
    if arguments.what == "plan":
        measure_plan(arguments.rows or 1_000_000)
    elif arguments.what == "sheet":
        draw_sheet(arguments.output, arguments.picture)
    else:
        measure_overhead(arguments.rows or 32, arguments.steps, arguments.batch_size)


if __name__ == "__main__":
    main()
