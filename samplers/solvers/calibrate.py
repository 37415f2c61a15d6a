"""Calibrate a solver: solve a few noises finely, then find the spacing, kernel and rows that come
nearest to that, judged on noises that no row was fitted on.

The network is only ever asked through `Drive`, which runs it at a list of times and lets a function
say where to go: a pipeline does that by running with a scheduler of ours, an exact score by a loop.

Every candidate (spacing x kernel x history x ridge) is fitted by `RowFitter` on three quarters of
the noises. Its score on the rest is

  mean e + sqrt(mean e^2) / 4,   e = relative error of a noise, at most 1/2                      (1)

so that a noise that ends at another picture counts, but does not drown the others. Published
solvers on the same spacings are judged on the same noises; the best of them is the file's fallback,
and if nothing fitted beats it the file says so and has no rows. The winner is fitted once more, on
all noises.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product

import torch
from jaxtyping import Float
from torch import Tensor

from skipstep.samplers.solvers.adams import Formula
from skipstep.samplers.solvers.conversions import to_kernel
from skipstep.samplers.solvers.fit import DenseTrajectory, RowFitter
from skipstep.samplers.solvers.nodes import Spacing, nodes
from skipstep.samplers.solvers.paths import Path
from skipstep.samplers.solvers.presets import PresetName
from skipstep.samplers.solvers.scheduler import ExponentialAdamsScheduler
from skipstep.samplers.solvers.solver_file import Fallback, Measured, SolverFile

__all__ = ["Advance", "Calibration", "Drive", "Place", "search"]

Advance = Callable[[int, Tensor, Tensor], Tensor]
"""(number of the evaluation, x, output) -> the next x."""
Drive = Callable[[float | None, Sequence[float], Advance], Tensor]
"""Run the network at network times with a guidance scale; return the last x."""

WORST = 0.5
SHARE_OF_BIG_MISSES = 0.25
KERNELS: dict[str, tuple[Formula, ...]] = {
    "vp": (Formula("x0", "lambda", 2), Formula("eps", "alpha_bar", 2)),
    "edm": (Formula("x0", "lambda", 2), Formula("eps", "atan", 2)),
    "flow": (Formula("v", "flow", 2), Formula("x0", "lambda", 2)),
}
PUBLISHED: tuple[PresetName, ...] = ("unipc", "dpm++2m")


@dataclass(frozen=True)
class Place:
    """Name a list of nodes."""

    spacing: Spacing = "time"
    shift: float = 1.0
    offset: float = 0.1

    def nodes(self, path: Path, steps: int) -> list[float]:
        """Return the nodes as s."""
        return nodes(path, steps, self.spacing, shift=self.shift, offset=self.offset)


PLACES: dict[str, tuple[Place, ...]] = {
    "flow": (Place(), Place(shift=1.5), Place(shift=2.0), Place(shift=3.0)),
    "vp": (
        Place(),
        Place("karras"),
        Place("log_shift"),
        Place("log_shift", offset=0.3),
        Place("log_shift", offset=1.0),
    ),
    "edm": (Place("karras"), Place("log_shift"), Place("log_shift", offset=0.3)),
}


@dataclass
class Calibration:
    """Hold what a search needs: the path, how to run the network, and how hard to look.

    `config` builds this package's scheduler on the path. `guidance` are the scales to fit at, none
    for a network without. `count` is how many noises every drive runs; a quarter is held out.
    `solve` gives the trajectories to come near to; None solves finely. No `kernels` are the path's
    usual ones.
    """

    drive: Drive
    path: Path
    config: dict[str, object]
    count: int
    guidance: tuple[float, ...] = ()
    reference_steps: int = 64
    histories: tuple[int, ...] = (3,)
    ridges: tuple[float, ...] = (1e-4,)
    places: tuple[Place, ...] = ()
    kernels: tuple[Formula, ...] = ()
    published: tuple[PresetName, ...] = PUBLISHED
    solve: Callable[[float | None], DenseTrajectory] | None = None
    tell: Callable[[int, int, str], None] | None = None
    truth: dict[float | None, DenseTrajectory] = field(default_factory=dict)

    @property
    def scales(self) -> tuple[float | None, ...]:
        """Return the guidance scales, None alone for a network without."""
        return self.guidance or (None,)

    @property
    def held_out(self) -> Tensor:
        """Return which noises are judged on: every fourth."""
        return torch.arange(self.count) % 4 == 3

    def solve_finely(self, scale: float | None) -> DenseTrajectory:
        """Solve with many corrected second-order steps and keep every state."""
        # Even times end with a jump from the first row of a beta table, which is far from fine.
        spacing = "time" if self.path.kind == "flow" else "log_shift"
        scheduler = ExponentialAdamsScheduler(**self.config, preset="exact2", spacing=spacing)
        scheduler.set_timesteps(self.reference_steps)
        found = DenseTrajectory(self.path)
        kind = str(self.config["prediction_type"])

        def step(i: int, x: Tensor, output: Tensor) -> Tensor:
            s = scheduler.nodes[i]
            p, q = to_kernel("v", self.path, s, kind, scheduler.config.sigma_data)
            following = scheduler.step(output, scheduler.timesteps[i], x).prev_sample
            found.add(s, scheduler.corrected(x), p * x + q * output)
            return torch.as_tensor(following)

        found.end(self.drive(scale, scheduler.timesteps.tolist(), step))
        return found


@dataclass(frozen=True)
class Candidate:
    """Name what is fitted: `history` values of u at most, near a formula by `ridge`."""

    place: Place
    formula: Formula
    history: int
    ridge: float


@dataclass(frozen=True)
class Fitted:
    """Hold a candidate's rows at every scale, its score and its error."""

    candidate: Candidate
    nodes: list[float]
    rows: tuple[tuple[tuple[float, ...], ...], ...]
    score: float
    error: float


def search(job: Calibration, steps: int, *, seed: int = 0) -> SolverFile:
    """Return the best solver of `steps` evaluations that was found.

    Raises ValueError for fewer than four noises or fewer than two steps.
    """
    if job.count < 4:
        raise ValueError(f"{job.count} noises are too few: one of four is held out, give 4 or more")
    if steps < 2:
        raise ValueError(f"steps={steps} is not allowed: must be 2 or more")
    places = job.places or PLACES[job.path.kind]
    kernels = job.kernels or KERNELS[job.path.kind]
    fits = len(places) * len(kernels) * len(job.histories) * len(job.ridges)
    rounds = len(job.scales) * (3 + fits + len(places) * len(job.published))
    done = 0

    def told(what: str) -> None:
        nonlocal done
        if job.tell is not None:
            job.tell(done, rounds, what)
        done += len(job.scales)

    told("fine solutions")
    for scale in job.scales:
        if scale not in job.truth:
            job.truth[scale] = (job.solve or job.solve_finely)(scale)
    found = []
    for place in places:
        for kernel in kernels:
            for history, ridge in product(job.histories, job.ridges):
                told(f"{place.spacing} shift {place.shift:g}, {kernel.kernel}")
                found.append(fitted(job, Candidate(place, kernel, history, ridge), steps))
    published: list[tuple[float, float, Fallback]] = []
    for place in places:
        for preset in job.published:
            told(f"{place.spacing} shift {place.shift:g}, {preset}")
            named = Fallback(
                preset=preset, spacing=place.spacing, shift=place.shift, offset=place.offset
            )
            published.append((*judged(job, named, steps), named))
    told("plain steps")
    plain = judged(job, Fallback(preset="ddim"), steps)
    best = min(found, key=lambda each: each.score)
    chosen = best.candidate
    score, error, fallback = min(published, key=lambda each: each[0])
    rows: tuple[tuple[tuple[float, ...], ...], ...] = ()
    if best.score < score:
        told("the winner on all noises")
        everything = torch.ones(job.count, dtype=torch.bool)
        rows = fitted(job, chosen, steps, everything).rows
    return SolverFile(
        path=job.path.kind,
        kernel=chosen.formula.kernel,
        times=tuple(1.0 if s == float("inf") else s / (1 + s) for s in best.nodes),
        guidance=job.guidance,
        guidance_range=guidance_range(job.guidance),
        rows=rows,
        fallback=fallback,
        measured=Measured(
            calibrated=best.error if rows else error,
            fallback=error,
            plain=plain[1],
            trajectories=job.count,
            reference_steps=job.reference_steps,
            seed=seed,
        ),
    )


def guidance_range(scales: Sequence[float]) -> tuple[float, float] | None:
    """Return where a file may be used: between its scales, around a single one half to 1.75 of it.

    A file fitted at 4 served 2 to 7 on exact scores; one fitted at 1 failed at 7.
    """
    if not scales:
        return None
    if len(scales) == 1:
        return (scales[0] / 2, scales[0] * 1.75)
    return (scales[0], scales[-1])


def fitted(
    job: Calibration, candidate: Candidate, steps: int, fitted_on: Tensor | None = None
) -> Fitted:
    """Fit one candidate at every scale; the noises not `fitted_on` ride along without weight.

    None is all but the held-out ones.
    """
    placed = candidate.place.nodes(job.path, steps)
    times = [job.path.time(s) for s in placed[:-1]]
    tables, errors = [], []
    for scale in job.scales:
        truth = job.truth[scale]
        fitter = RowFitter(
            job.path,
            candidate.formula,
            placed,
            [truth.at(s) for s in placed],
            candidate.history,
            candidate.ridge,
            ~job.held_out if fitted_on is None else fitted_on,
            str(job.config["prediction_type"]),
            job.config.get("sigma_data"),
        )
        end = job.drive(scale, times, fitter.advance)
        tables.append(tuple(fitter.rows))
        errors.append(errors_of(end, truth.at(0.0))[job.held_out])
    together = torch.cat(errors)
    return Fitted(candidate, placed, tuple(tables), score_of(together), float(rms(together)))


def judged(job: Calibration, named: Fallback, steps: int) -> tuple[float, float]:
    """Return score and error of a published solver on the held-out noises."""
    errors = []
    for scale in job.scales:
        scheduler = ExponentialAdamsScheduler(
            **job.config
            | {"preset": named.preset, "spacing": named.spacing, "spacing_offset": named.offset}
            | ({"shift": named.shift} if job.path.kind == "flow" else {})
        )
        scheduler.set_timesteps(steps)

        def step(
            i: int, x: Tensor, output: Tensor, solver: ExponentialAdamsScheduler = scheduler
        ) -> Tensor:
            following: Tensor = solver.step(output, solver.timesteps[i], x).prev_sample
            return following

        end = job.drive(scale, scheduler.timesteps.tolist(), step)
        errors.append(errors_of(end, job.truth[scale].at(0.0))[job.held_out])
    together = torch.cat(errors)
    return score_of(together), float(rms(together))


def errors_of(found: Float[Tensor, "b ..."], truth: Float[Tensor, "b ..."]) -> Float[Tensor, " b"]:
    """Return each noise's root mean square error in units of the truth's spread."""
    squares = (found.double() - truth.double()).pow(2).flatten(1).mean(1)
    return (squares.sqrt() / truth.double().std()).cpu()


def rms(errors: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """Return the root mean square."""
    return errors.pow(2).mean().sqrt()


def score_of(errors: Float[Tensor, " n"]) -> float:
    """Return equation (1)."""
    kept = errors.nan_to_num(WORST, WORST).clamp_max(WORST)
    return float(kept.mean() + SHARE_OF_BIG_MISSES * rms(kept))
