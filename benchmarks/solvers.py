"""Solvers at equal network evaluations: ours, and diffusers' schedulers in 25 configurations.

    python -m benchmarks.solvers --quick                  exact scores, 5, 8 and 10 evaluations
    python -m benchmarks.solvers --curves docs/solvers.png     the same to 20, as curves
    python -m benchmarks.solvers --orders                 slopes on a Gaussian with known solution
    python -m benchmarks.solvers --reference              on the reference model, unseen prompts

On exact scores a row is the root mean square, the median and the share above 0.25 ("flips": other
modes) of the distance to a fine solution, in units of its spread, over 256 noises. Calibrated
solvers see 48 other noises. Figures are exact to the digit on any machine; what a step
costs is timed by benchmarks.step_cost.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from skipstep.samplers.solvers.calibrate import Advance, Calibration, errors_of, search
from skipstep.samplers.solvers.paths import Path as NoisePath
from skipstep.samplers.solvers.paths import betas_of, vp_path
from skipstep.samplers.solvers.scheduler import ExponentialAdamsScheduler
from skipstep.testing.mixtures import Network, mixture, relative_errors, solve_finely

TARGETS = ("ring", "latent", "sharp")
BETAS: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
TRAILING = {"timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
NOISES, CALIBRATED_ON = 256, 48
SHIPPED = [
    Path(__file__).resolve().parents[1] / "pipelines" / "reference" / f"solver-{name}.json"
    for name in ("5", "8", "5-wide", "8-wide")
]
FLIPPED = 0.25
Figures = tuple[float, float, float]

PEERS: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("DDIM", TRAILING | {"clip_sample": False, "set_alpha_to_one": True}),
    "DDIM leading": (
        "DDIM",
        {
            "timestep_spacing": "leading",
            "steps_offset": 1,
            "clip_sample": False,
            "set_alpha_to_one": False,
        },
    ),
    "PNDM (SD)": (
        "PNDM",
        {
            "timestep_spacing": "leading",
            "steps_offset": 1,
            "skip_prk_steps": True,
            "set_alpha_to_one": False,
        },
    ),
    "PNDM trailing": ("PNDM", TRAILING | {"skip_prk_steps": True, "set_alpha_to_one": True}),
    "DEIS 2": ("DEISMultistep", TRAILING | {"solver_order": 2}),
    "DEIS 3": ("DEISMultistep", TRAILING | {"solver_order": 3}),
    "DPM++2M": ("DPMSolverMultistep", TRAILING | {"solver_order": 2}),
    "DPM++2M karras": ("DPMSolverMultistep", KARRAS | {"solver_order": 2}),
    "DPM++2M lu": ("DPMSolverMultistep", {"use_lu_lambdas": True, "solver_order": 2}),
    "DPM++3M": ("DPMSolverMultistep", TRAILING | {"solver_order": 3}),
    "DPM++3M karras": ("DPMSolverMultistep", KARRAS | {"solver_order": 3}),
    "DPM++2S": ("DPMSolverSinglestep", {"solver_order": 2}),
    "UniPC 2": ("UniPCMultistep", TRAILING | {"solver_order": 2}),
    "UniPC 2 karras": ("UniPCMultistep", KARRAS | {"solver_order": 2}),
    "UniPC 3": ("UniPCMultistep", TRAILING | {"solver_order": 3}),
    "UniPC 3 karras": ("UniPCMultistep", KARRAS | {"solver_order": 3}),
    "UniPC 2 exponential": (
        "UniPCMultistep",
        {"use_exponential_sigmas": True, "solver_order": 2},
    ),
    "UniPC 2 beta": ("UniPCMultistep", {"use_beta_sigmas": True, "solver_order": 2}),
    "SA-Solver, no noise": (
        "SA",
        TRAILING | {"predictor_order": 2, "corrector_order": 2, "tau_func": lambda t: 0.0},
    ),
    "Euler": ("EulerDiscrete", TRAILING),
    "Euler karras": ("EulerDiscrete", KARRAS),
    "Heun karras": ("HeunDiscrete", KARRAS),
    "LMS": ("LMSDiscrete", TRAILING),
    "LMS karras": ("LMSDiscrete", KARRAS),
    "KDPM2 karras": ("KDPM2Discrete", KARRAS),
}
CLASSES = {"SA": "SASolverScheduler"}
OURS: dict[str, dict[str, Any]] = {
    "ours: unipc, log_shift": {"preset": "unipc", "spacing": "log_shift"},
    "ours: exact2, log_shift": {"preset": "exact2", "spacing": "log_shift"},
    "ours: accelerated": {"preset": "accelerated"},
    "ours: accelerated, log_shift": {"preset": "accelerated", "spacing": "log_shift"},
    "ours: ab2": {"preset": "ab2"},
    "ours: plms, karras": {"preset": "plms", "spacing": "karras"},
}


def start_of(name: str, seed: int, count: int) -> Tensor:
    """Return noises of a target's dimension."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(count, mixture(name).means.shape[1], generator=random, dtype=torch.float64)


def figures(found: Tensor, truth: Tensor) -> Figures:
    """Return root mean square, median and share of flips."""
    errors = relative_errors(found.double(), truth)
    return (
        float(errors.pow(2).mean().sqrt()),
        float(errors.median()),
        float((errors > FLIPPED).double().mean()),
    )


def run_scheduler(scheduler: Any, network: Network, start: Tensor, steps: int) -> Tensor:
    """Solve with any scheduler in diffusers' form; schedulers that count noise from 1 start there.

    Those with two evaluations a step get half of the steps.
    """
    halved = getattr(scheduler, "order", 1) == 2
    scheduler.set_timesteps((steps + 1) // 2 if halved else steps)
    is_exploding = type(scheduler).__name__.startswith(("Euler", "Heun", "LMS", "KDPM2"))
    x = start * math.hypot(1.0, network.path.most) if is_exploding else start
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), float(t))
        x = scheduler.step(output, t, x).prev_sample
    return x


def calibrated(name: str, path: NoisePath, steps: int) -> Any:
    """Return a solver file fitted on 48 noises of an exact score."""
    start, target = start_of(name, 11, CALIBRATED_ON), mixture(name)

    def drive(scale: float | None, times: Sequence[float], advance: Advance) -> Tensor:
        network, x = Network(target, path), start
        for i, moment in enumerate(times):
            x = advance(i, x, network(x, moment))
        return x

    job = Calibration(
        drive,
        path,
        BETAS | {"prediction_type": "epsilon"},
        CALIBRATED_ON,
        reference_steps=200,
        histories=(2, 3, 4),
        ridges=(1e-6, 1e-4, 1e-2),
    )
    return search(job, steps)


def with_table(file: Any) -> ExponentialAdamsScheduler:
    """Return the scheduler of a solver file, its fallback where it has no rows."""
    rows, last = file.table(None), file.fallback
    table = rows and {"kernel": rows.kernel, "nodes": rows.nodes, "rows": rows.rows}
    built: ExponentialAdamsScheduler = ExponentialAdamsScheduler(
        **BETAS,
        preset=last.preset,
        spacing=last.spacing,
        spacing_offset=last.offset,
        table=table,
    )
    return built


def exact_scores(counts: Sequence[int], out: Path | None) -> dict[str, dict[int, list[Figures]]]:
    """Print a table for every number of evaluations; return figures by solver, count and target."""
    path = vp_path(betas_of(**{k.removeprefix("beta_"): v for k, v in named().items()}))
    starts = {name: start_of(name, 1, NOISES) for name in TARGETS}
    truths = {name: solve_finely(mixture(name), path, starts[name]) for name in TARGETS}
    found: dict[str, dict[int, list[Figures]]] = {}
    for count in counts:
        for name in TARGETS:
            target, start, truth = mixture(name), starts[name], truths[name]
            for label, (cls, config) in PEERS.items():
                kind = getattr(diffusers, CLASSES.get(cls, f"{cls}Scheduler"))
                network = Network(target, path)
                try:
                    end = run_scheduler(kind(**BETAS, **config), network, start.float(), count)
                    row = figures(end, truth)
                # diffusers' beta sigmas repeat themselves from about 50 steps on and fail.
                except (AssertionError, RuntimeError, ValueError, IndexError):
                    row = (math.nan, math.nan, math.nan)
                found.setdefault(label, {}).setdefault(count, []).append(row)
            for label, config in OURS.items():
                solver = ExponentialAdamsScheduler(**BETAS, **config)
                end = run_scheduler(solver, Network(target, path), start, count)
                found.setdefault(label, {}).setdefault(count, []).append(figures(end, truth))
            if count <= 10:
                solver = with_table(calibrated(name, path, count))
                end = run_scheduler(solver, Network(target, path), start, count)
                row = figures(end, truth)
                found.setdefault("ours: calibrated", {}).setdefault(count, []).append(row)
        print_table(found, count)
    if out is not None:
        out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def named() -> dict[str, Any]:
    """Return the betas under the names of `betas_of`."""
    return {
        "beta_schedule": BETAS["beta_schedule"],
        "beta_start": BETAS["beta_start"],
        "beta_end": BETAS["beta_end"],
        "beta_count": 1000,
    }


def geometric(rows: Sequence[Figures], part: int) -> float:
    """Return the geometric mean over the targets of one figure."""
    return float(np.exp(np.mean([math.log(max(row[part], 1e-9)) for row in rows])))


def print_table(found: dict[str, dict[int, list[Figures]]], count: int) -> None:
    """Print all solvers at one number of evaluations, best first."""
    print(f"\n{count} evaluations: root mean square / median / flips")
    heads = " | ".join(f"{name:^22}" for name in TARGETS)
    print(f"| {'solver':<29} | {heads} | geometric mean |")
    print("|---" * (len(TARGETS) + 2) + "|")
    rows = {label: each[count] for label, each in found.items() if count in each}
    for label in sorted(rows, key=lambda each: geometric(rows[each], 0)):
        cells = " | ".join(f"{a:.4f} / {b:.4f} / {c:4.1%}" for a, b, c in rows[label])
        mean = f"{geometric(rows[label], 0):.4f} / {geometric(rows[label], 1):.4f}"
        print(f"| {label:<29} | {cells} | {mean} |", flush=True)


def draw(found: dict[str, dict[int, list[Figures]]], path: Path) -> None:
    """Draw the geometric mean of the medians against evaluations."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = {
        "DDIM": "0.6",
        "DPM++2M karras": "tab:blue",
        "UniPC 2 karras": "tab:cyan",
        "SA-Solver, no noise": "tab:purple",
        "LMS karras": "tab:brown",
        "ours: exact2, log_shift": "tab:orange",
        "ours: calibrated": "tab:red",
    }
    figure, places = pyplot.subplots(1, 2, figsize=(10, 4), sharex=True, sharey=True)
    for part, place in enumerate(places):
        for label, colour in shown.items():
            counts = sorted(found[label])
            values = [geometric(found[label][count], part) for count in counts]
            place.plot(counts, values, "o-", color=colour, label=label, markersize=4)
        place.set(
            xscale="log",
            yscale="log",
            xlabel="network evaluations",
            title=("root mean square", "median")[part] + " error, mean of three targets",
        )
        ticks = sorted(found["DDIM"])
        place.set_xticks(ticks, [str(each) for each in ticks])
        place.minorticks_off()
        place.grid(alpha=0.3)
    places[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(f"curves: {path}")


def orders() -> None:
    """Print the measured order of members of the family on a Gaussian."""
    from skipstep.samplers.solvers.adams import Formula, plan
    from skipstep.samplers.solvers.paths import edm_path

    variances = torch.tensor([0.01, 0.1, 1.0, 4.0], dtype=torch.float64)
    top, bottom, path = 14.6, 0.05, edm_path()
    cases = {
        "order 1": Formula("x0", "lambda", 1),
        "order 2": Formula("x0", "lambda", 2, taper_below=0),
        "order 2, corrector": Formula("x0", "lambda", 2, corrector=True, taper_below=0),
        "order 3, no start-up": Formula("x0", "lambda", 3, taper_below=0),
        "order 3, start-up": Formula("x0", "lambda", 3, start_up="rk4", taper_below=0),
        "order 4, start-up": Formula("x0", "lambda", 4, start_up="rk4", taper_below=0),
    }
    truth = ((variances + bottom**2) / (variances + top**2)).sqrt()
    for label, formula in cases.items():
        errors = []
        for count in (320, 640):
            line = np.exp(np.linspace(math.log(top), math.log(bottom), count + 1)).tolist()
            moves = plan(formula, path, [*line, bottom / 100])
            x = base = torch.ones(4, dtype=torch.float64)
            memory: list[Tensor] = []
            for move in moves:
                if move.s == line[-1] and move.ends:
                    break
                memory = [variances / (variances + move.s**2) * x, *memory]
                x = move.anchor * base + sum(
                    w * m for w, m in zip(move.weights, memory, strict=False)
                )
                if move.ends:
                    base, memory = x, memory[move.forget :]
            errors.append(float((x - truth).pow(2).mean().sqrt()))
        print(f"{label:<22} {math.log2(errors[0] / errors[1]):.2f}   error at 640: {errors[1]:.1e}")


def reference(
    scales: Sequence[float], counts: Sequence[int], files: Sequence[Path], pictures: int
) -> None:
    """Print decibels to the fine solution on prompts that no file was fitted on.

    "All" is the root mean square over everything, where one picture that turns out another decides;
    the median and the mean are over pictures. Peers are asked at four shifts each, and the best of
    all in each column is printed. A file's gain is the mean over pictures of decibels beyond the
    peer with the best mean, with its 95 % interval, and the share of pictures that are nearer.
    """
    from skipstep.pipelines.reference import load_reference
    from skipstep.pipelines.reference.prompts import load_prompts
    from skipstep.pipelines.tune.calibrate_solver import SolverCalibration
    from skipstep.samplers.solvers.solver_file import SolverFile

    known_prompts = [each["prompt"] for each in load_prompts()]
    prompts = known_prompts[2 :: len(known_prompts) // pictures]
    made = SolverCalibration(
        load_reference(),
        prompts,
        guidance=list(scales),
        trajectories=len(prompts),
        reference_steps=100,
        seed=500,
    )
    known = [(file, SolverFile.load(file)) for file in files]
    made.pipe.set_progress_bar_config(disable=True)
    print("| guidance | steps | solver | all | median | mean | gain | nearer |")
    print("|---|---|---|---|---|---|---|---|")
    for scale in scales:
        truth = made.job.solve_finely(scale).at(0.0)

        def decibels(count: int, scheduler: Any, of: float = scale, end: Tensor = truth) -> Tensor:
            scheduler.set_timesteps(count)

            def step(i: int, x: Tensor, output: Tensor) -> Tensor:
                following: Tensor = scheduler.step(output, scheduler.timesteps[i], x).prev_sample
                return following

            errors = errors_of(made.drive(of, scheduler.timesteps.tolist(), step), end)
            return -20 * errors.log10()

        def tell(count: int, label: str, cells: Sequence[str], of: float = scale) -> None:
            print(f"| {of:g} | {count} | {label} | {' | '.join(cells)} |", flush=True)

        for count in counts:
            peers = {
                (preset, shift): decibels(
                    count,
                    ExponentialAdamsScheduler(
                        **made.job.config | {"preset": preset, "shift": shift}
                    ),
                )
                for preset in ("unipc", "dpm++2m")
                for shift in (1.0, 1.5, 2.0, 3.0)
            }
            tell(count, "best of UniPC and DPM++2M", best_columns(list(peers.values())))
            unipc = [found for (preset, _), found in peers.items() if preset == "unipc"]
            tell(count, "UniPC, its best shift", best_columns(unipc))
            best = max(peers.values(), key=lambda found: float(found.mean()))
            for path, file in known:
                if file.steps == count:
                    rows = file.table(scale)
                    table = rows and {"kernel": rows.kernel, "nodes": rows.nodes, "rows": rows.rows}
                    solver = ExponentialAdamsScheduler(**made.job.config | {"table": table})
                    inside = "" if file.serves(scale) else ", outside its range"
                    found = decibels(count, solver)
                    gain = found - best
                    half = 1.96 * float(gain.std()) / len(gain) ** 0.5
                    cells = [f"{each:.1f}" for each in columns(found)]
                    cells.append(f"{float(gain.mean()):+.1f} ± {half:.1f}")
                    cells.append(f"{float((gain > 0).double().mean()):.0%}")
                    tell(count, f"{path.name}{inside}", cells)


def columns(decibels: Tensor) -> tuple[float, float, float]:
    """Return decibels of everything at once, of the median and of the mean picture."""
    errors = 10 ** (-decibels / 20)
    whole = -20 * errors.pow(2).mean().sqrt().log10()
    return float(whole), float(decibels.quantile(0.5)), float(decibels.mean())


def best_columns(found: Sequence[Tensor]) -> list[str]:
    """Return the best of several solvers in each column, and no gain."""
    rows = [columns(each) for each in found]
    return [*(f"{max(row):.1f}" for row in zip(*rows, strict=True)), "", ""]


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="5, 8 and 10 evaluations only")
    parser.add_argument("--curves", type=Path, help="draw curves to this file")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--orders", action="store_true")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--guidance", type=float, nargs="+", default=[3.0])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 8])
    parser.add_argument("--pictures", type=int, default=8, choices=(8, 16, 32))
    parser.add_argument("--files", type=Path, nargs="*", default=SHIPPED)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    if arguments.orders:
        orders()
    if arguments.reference:
        reference(arguments.guidance, arguments.steps, arguments.files, arguments.pictures)
    if arguments.quick or arguments.curves:
        found = exact_scores((5, 8, 10) if arguments.quick else (5, 8, 10, 20), arguments.json)
        if arguments.curves:
            draw(found, arguments.curves)


if __name__ == "__main__":
    main()
