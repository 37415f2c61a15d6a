"""How long `import skipstep` takes beyond the pipeline base classes of diffusers that it needs.

Runs both imports in fresh processes, in turns so that both meet the same load, and prints the
median of the differences. The goal is at most 0.2 seconds.

    python benchmarks/import_time.py --pairs 7
"""

import argparse
import statistics
import subprocess
import sys

BASE = (
    "import diffusers.pipelines.pipeline_utils, diffusers.modular_pipelines.modular_pipeline; "
    "from diffusers import DiffusionPipeline, ModularPipeline"
)
GOAL_SECONDS = 0.2


def import_seconds(statement: str) -> float:
    """Time a statement in a fresh process, the start of Python left out."""
    program = f"import time; t = time.perf_counter(); {statement}; print(time.perf_counter() - t)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{statement} failed:\n{done.stderr}")
    return float(done.stdout)


def main() -> None:
    """Measure pairs of imports and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=7, help="pairs of imports to time")
    pairs = parser.parse_args().pairs
    import_seconds(f"{BASE}; import skipstep")  # the first import reads files from disk
    base, ours = [], []
    for _ in range(pairs):
        base.append(import_seconds(BASE))
        ours.append(import_seconds(f"{BASE}; import skipstep"))
    extra = statistics.median(b - a for a, b in zip(base, ours, strict=True))
    print(f"diffusers' pipeline base  {statistics.median(base):6.3f} s  (median of {pairs})")
    print(f"with skipstep             {statistics.median(ours):6.3f} s")
    print(f"skipstep adds             {extra:6.3f} s  (goal: at most {GOAL_SECONDS} s)")


if __name__ == "__main__":
    main()
