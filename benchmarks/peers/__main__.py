"""Us beside the peers on the same reference models: speed, fidelity, and who wins where.

    python -m benchmarks.peers --quick              minutes: 28 steps, 6 prompts, fewer settings
    python -m benchmarks.peers                      28 and 50 steps, 24 prompts, all settings
    python -m benchmarks.peers --scouts 2           the same, hopeless settings on 2 prompts alone
    python -m benchmarks.peers --reuse              the table again from the answers in --out

Every peer runs in a process of its own with one thread, on the same prompts and seeds. FLOPs are
those of the denoiser, counted by torch for everybody alike. What lies on a peer's own front is
timed: medians of ratios of CPU seconds to the uncached pipeline in the same round. Peers come with
pip install "skipstep[bench]", DeepCache with pip install --no-deps DeepCache.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from skipstep.benchmarks.peers.arms import MODELS, PEERS
from skipstep.benchmarks.peers.figure import draw
from skipstep.benchmarks.peers.protocol import Answer, Job, ask, read_answer
from skipstep.benchmarks.peers.table import PSNR, judged, points_of, refusals, table
from skipstep.pipelines.pictures import save_png
from skipstep.pipelines.reference.prompts import load_prompts

QUICK_STEPS, QUICK_PROMPTS, QUICK_ROUNDS = [28], 6, 1
# Below this many rounds a median of ratios says nothing.
LEAST_ROUNDS = 6


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="fewer settings, steps, prompts")
    parser.add_argument("--steps", type=int, nargs="+", help="default 28 50; quick 28")
    parser.add_argument("--prompts", type=int, help="how many; default 24, quick 6")
    parser.add_argument(
        "--scouts", type=int, default=0, help="further prompts that choose the settings; default 0"
    )
    parser.add_argument("--rounds", type=int, help="timed rounds a setting; default 8, quick 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", choices=list(MODELS), nargs="+", default=list(MODELS))
    parser.add_argument("--peers", choices=list(PEERS), nargs="+", default=list(PEERS))
    parser.add_argument("--match", nargs="+", help="only settings that hold one of these texts")
    parser.add_argument("--out", type=Path, default=Path("out/peers"))
    parser.add_argument("--timeout", type=float, help="seconds for one peer; default no limit")
    parser.add_argument("--reuse", action="store_true", help="keep answers that are there")
    parser.add_argument("--all", action="store_true", help="print all settings, not only fronts")
    chosen = parser.parse_args(arguments)
    chosen.steps = chosen.steps or (QUICK_STEPS if chosen.quick else [28, 50])
    chosen.prompts = chosen.prompts or (QUICK_PROMPTS if chosen.quick else 24)
    if chosen.rounds is None:
        chosen.rounds = QUICK_ROUNDS if chosen.quick else 8
    if (
        min([*chosen.steps, chosen.prompts, chosen.threads]) < 1
        or min(chosen.rounds, chosen.scouts) < 0
    ):
        parser.error("steps, prompts and threads are 1 or more, rounds and scouts 0 or more")
    return chosen


def job_of(peer: str, model: str, steps: int, chosen: argparse.Namespace) -> Job:
    """Return what one peer is asked; the prompts are spread over the reference model's."""
    known = load_prompts()
    count = min(chosen.prompts, len(known))
    places = [i * len(known) // count for i in range(count)]
    # Prompts that are neither measured nor, one behind each 32nd, what ours plan on.
    places += [i for i in range(5, len(known), 7) if i not in places and i % 32 != 1][
        : chosen.scouts
    ]
    row, loaded = PEERS[peer], MODELS[model]
    settings = [
        setting
        for setting in (row.quick if chosen.quick else row.settings)
        if not chosen.match or any(text in setting for text in chosen.match)
    ]
    return Job(
        peer=peer,
        driver=row.driver,
        package=row.package,
        loader=loaded.loader,
        model=model,
        stock_class=loaded.stock_class,
        settings=settings,
        prompts=[known[place]["prompt"] for place in places],
        seeds=list(range(len(places))),
        steps=steps,
        rounds=chosen.rounds,
        threads=chosen.threads,
        scouts=chosen.scouts,
    )


def answers_for(
    model: str, steps: int, chosen: argparse.Namespace, console: Console
) -> list[Answer]:
    """Ask every peer in turn."""
    answers = []
    for peer in chosen.peers:
        path = chosen.out / f"{model}-{steps}-{peer.replace(' ', '-')}.json"
        if chosen.reuse and path.exists():
            answers.append(read_answer(path))
            continue
        job = job_of(peer, model, steps, chosen)
        console.print(f"{peer}: {len(job.settings)} settings, {steps} steps ...", style="dim")
        answers.append(ask(job, path, timeout=chosen.timeout))
    return answers


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write peers.json and peers.png."""
    chosen = parse(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True)
    panels, written = {}, []
    for model in chosen.model:
        for steps in chosen.steps:
            answers = answers_for(model, steps, chosen, console)
            panels[f"{model}, {steps} steps"] = {
                answer.peer: points_of(answer, PSNR, by="FLOPs") for answer in answers
            }
            written.append(show(model, steps, answers, chosen, console))
    text = json.dumps({"version": 1, "runs": written}, indent=1, allow_nan=False)
    (chosen.out / "peers.json").write_text(text, encoding="utf-8")
    save_png(draw(panels), chosen.out / "peers.png")
    console.print(f"wrote {chosen.out / 'peers.json'} and {chosen.out / 'peers.png'}")


def show(
    model: str, steps: int, answers: list[Answer], chosen: argparse.Namespace, console: Console
) -> dict[str, Any]:
    """Print one model and number of steps; return it as data."""
    versions = ", ".join(f"{answer.peer} {answer.version}".strip() for answer in answers)
    console.rule(f"{model}, {steps} steps, {chosen.prompts} prompts")
    console.print(f"{versions}; {max(a.denoiser_gflops for a in answers):.1f} GFLOP uncached")
    digests = {answer.digest for answer in answers if answer.digest}
    if len(digests) > 1:
        console.print("The uncached pictures differ between processes: do not compare.")
    console.print(table(answers, everything=chosen.all))
    for line in refusals(answers):
        console.print(line, markup=False)
    found = {}
    rounds = min((len(r.seconds) for a in answers for r in a.results if r.seconds), default=0)
    for by in ("FLOPs", "time"):
        if by == "time" and rounds < LEAST_ROUNDS:
            console.print(f"No verdict by time: {rounds} rounds, {LEAST_ROUNDS} are needed.")
            continue
        lines, found[by] = judged(answers, by=by)
        for line in lines:
            console.print(line, markup=False)
    return {
        "model": model,
        "steps": steps,
        "verdicts": found,
        "answers": [asdict(answer) for answer in answers],
    }


if __name__ == "__main__":
    main()
