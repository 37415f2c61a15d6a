"""How long `import skipstep` takes beyond the pipeline base classes of diffusers that it needs.

Each fresh process imports the base classes first and skipstep then, so that what skipstep adds is
measured alone. Prints medians; the goal is at most 0.2 seconds.

    python benchmarks/import_time.py --processes 7
"""

import argparse
import statistics
import subprocess
import sys

PROGRAM = """
from time import perf_counter, process_time
start, start_cpu = perf_counter(), process_time()
from diffusers import DiffusionPipeline, ModularPipeline
middle, middle_cpu = perf_counter(), process_time()
import skipstep
print(middle - start, middle_cpu - start_cpu, perf_counter() - middle, process_time() - middle_cpu)
"""
GOAL_SECONDS = 0.2


def import_seconds() -> list[float]:
    """Time both imports in a fresh process: diffusers' wall and CPU seconds, then skipstep's."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"the imports failed:\n{done.stderr}")
    return [float(word) for word in done.stdout.split()]


def main() -> None:
    """Measure in several processes and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=7, help="how often to measure")
    processes = parser.parse_args().processes
    import_seconds()  # the first process reads files from disk
    runs = [import_seconds() for _ in range(processes)]
    wall, cpu, added, added_cpu = (statistics.median(column) for column in zip(*runs, strict=True))
    print(f"medians of {processes} processes")
    print(f"diffusers' pipeline base  {wall:6.3f} s  ({cpu:.3f} s of CPU)")
    print(f"skipstep adds             {added:6.3f} s  ({added_cpu:.3f} s of CPU)")
    print(f"goal                      {GOAL_SECONDS:6.3f} s")


if __name__ == "__main__":
    main()
