"""The exponential Adams family: its orders, and the published update behind every preset's name."""

import math
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skipstep.samplers.solvers.adams import TAU, Formula, adams_weights, plan, scale
from skipstep.samplers.solvers.nodes import nodes
from skipstep.samplers.solvers.paths import betas_of, edm_path, flow_path, vp_path
from skipstep.samplers.solvers.presets import PRESETS, formula_of
from skipstep.samplers.solvers.scheduler import ExponentialAdamsScheduler

STABLE_DIFFUSION: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
VP = vp_path(betas_of("scaled_linear", 0.00085, 0.012, 1000))
FLOW = flow_path()
WIDE = torch.float64
PLACES = [VP.at_time(t) for t in (999.0, 790.5, 611.0, 437.0, 260.0, 111.0, 30.0)]


def network(x: Tensor, s: float) -> Tensor:
    """Return something smooth that depends on x and on the noise."""
    return torch.sin(x + 0.3 * math.log(1 + s)) + 0.2 * x


def start() -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=WIDE)


def ours(preset: str, times: list[float], **config: Any) -> Tensor:
    """Run a preset of ours at network times; the network is asked at the nodes' own s."""
    scheduler = ExponentialAdamsScheduler(**{**STABLE_DIFFUSION, **config}, preset=preset)
    scheduler.set_timesteps(timesteps=times)
    x = start()
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, scheduler._moves[i].s), t, x).prev_sample
    return x


def theirs(cls: Any, places: list[float], **config: Any) -> Tensor:
    """Run a diffusers scheduler with its sigmas replaced by exactly these."""
    scheduler = cls(**{**STABLE_DIFFUSION, **config})
    scheduler.set_timesteps(len(places))
    scheduler.sigmas = torch.tensor([*places, 0.0], dtype=WIDE)
    x = start()
    for s, t in zip(places, scheduler.timesteps, strict=True):
        x = scheduler.step(network(x, s), t, x).prev_sample
    return x


@pytest.mark.parametrize(
    ("preset", "cls", "config"),
    [
        ("ddim", diffusers.DPMSolverMultistepScheduler, {"solver_order": 1}),
        ("dpm++2m", diffusers.DPMSolverMultistepScheduler, {"solver_order": 2}),
        ("dpm++3m", diffusers.DPMSolverMultistepScheduler, {"solver_order": 3}),
        ("unipc", diffusers.UniPCMultistepScheduler, {"solver_order": 2}),
        ("unipc3", diffusers.UniPCMultistepScheduler, {"solver_order": 3}),
    ],
)
def test_presets_are_diffusers_updates(preset: str, cls: Any, config: dict[str, Any]) -> None:
    times = [VP.time(s) for s in PLACES]
    expected = theirs(cls, PLACES, **config)
    torch.testing.assert_close(ours(preset, times), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("order", [2, 3])
def test_deis_is_diffusers_update_up_to_its_wrong_end(order: int) -> None:
    """diffusers' DEIS appends its last sigma instead of 0, so all but the last step is compared."""
    scheduler = diffusers.DEISMultistepScheduler(
        **STABLE_DIFFUSION, solver_order=order, lower_order_final=False
    )
    scheduler.set_timesteps(len(PLACES))
    scheduler.sigmas = torch.tensor([*PLACES, 0.0], dtype=WIDE)
    mine = ExponentialAdamsScheduler(
        **STABLE_DIFFUSION, preset="deis", solver_order=order, spacing="time"
    )
    mine.set_timesteps(timesteps=[VP.time(s) for s in PLACES])
    # Ours lowers the order of the last steps; theirs was told not to.
    mine._moves = plan(replace(mine.formula, taper_below=0), mine.path, [*PLACES, 0.0])
    x = y = start()
    for s, t, u in zip(PLACES[:-1], scheduler.timesteps, mine.timesteps, strict=False):
        x = scheduler.step(network(x, s), t, x).prev_sample
        y = mine.step(network(y, s), u, y).prev_sample
    torch.testing.assert_close(y, x, rtol=0, atol=1e-6)


def transfer(x: Tensor, e: Tensor, t: float, to: float) -> Tensor:
    """Return PNDM's phi(x, e, t, t'), Eq. (11) of Liu et al., between two values of s."""
    a, b = 1 / (1 + t * t), 1 / (1 + to * to)
    first = x / (math.sqrt(a) * (math.sqrt(a) + math.sqrt(b)))
    below = math.sqrt(a) * (math.sqrt((1 - b) * a) + math.sqrt((1 - a) * b))
    return x + (b - a) * (first - e / below)


def pndm(places: list[float], start_up: str) -> Tensor:
    """Run F-PNDM ("pndm"), S-PNDM ("s-pndm"), or PLMS without a start ("plms") from the paper."""
    x, known = start(), list[Tensor]()
    adams = {
        1: (1.0,),
        2: (3 / 2, -1 / 2),
        3: (23 / 12, -16 / 12, 5 / 12),
        4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
    }
    most = 2 if start_up == "s-pndm" else 4
    for i, (s, to) in enumerate(zip(places, [*places[1:], 0.0], strict=True)):
        e1 = network(x, s)
        known = [e1, *known][:most]
        if start_up == "pndm" and i < 3:
            middle = VP.at_time((VP.time(s) + VP.time(to)) / 2)
            e2 = network(transfer(x, e1, s, middle), middle)
            e3 = network(transfer(x, e2, s, middle), middle)
            e4 = network(transfer(x, e3, s, to), to)
            e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        elif start_up == "s-pndm" and i == 0:
            e = (e1 + network(transfer(x, e1, s, to), to)) / 2
        else:
            e = torch.stack(known, -1) @ torch.tensor(adams[len(known)], dtype=WIDE)
        x = transfer(x, e, s, to)
    return x


@pytest.mark.parametrize("preset", ["pndm", "s-pndm", "plms", "ipndm"])
def test_pndm_presets_are_the_papers_formulas(preset: str) -> None:
    times = [VP.time(s) for s in PLACES]
    expected = pndm(PLACES, "plms" if preset == "ipndm" else preset)
    torch.testing.assert_close(ours(preset, times), expected, rtol=0, atol=1e-6)


def test_accelerated_is_the_formula_of_li_et_al() -> None:
    x, last = start(), None
    products = [1 / (1 + s * s) for s in (*PLACES, 0.0)]
    for i, s in enumerate(PLACES):
        a, b = products[i], products[i + 1]
        e = network(x, s)
        moved = x * math.sqrt(b / a) + (math.sqrt(1 - b) - math.sqrt((1 - a) * b / a)) * e
        if last is not None and i + 1 < len(PLACES):
            ratio = [math.sqrt((1 - p) / p) for p in (a, b)]
            arc = a * ratio[1] + math.asin(math.sqrt(b)) - a * ratio[0] - math.asin(math.sqrt(a))
            moved = moved + math.sqrt(b) / (a - products[i - 1]) * arc * (last - e)
        x, last = moved, e
    times = [VP.time(s) for s in PLACES]
    torch.testing.assert_close(ours("accelerated", times), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ab_presets_are_adams_bashforth_with_the_true_steps(order: int) -> None:
    times = [1000.0, 810.0, 600.0, 450.0, 220.0, 90.0]
    t = [each / 1000 for each in times] + [0.0]
    x, known = start(), list[tuple[float, Tensor]]()
    for i, now in enumerate(t[:-1]):
        known = [(now, network(x, FLOW.at_time(times[i]) if i else 1e9)), *known][:order]
        for j, (node, v) in enumerate(known):
            others = [other for k, (other, _) in enumerate(known) if k != j]
            basis = np.poly1d(others, r=True) / float(np.prod([node - each for each in others]))
            whole = basis.integ()
            x = x + float(whole(t[i + 1]) - whole(now)) * v
    scheduler = ExponentialAdamsScheduler(prediction_type="flow_prediction", preset=f"ab{order}")
    scheduler.set_timesteps(timesteps=times)
    y = start()
    for i, time in enumerate(scheduler.timesteps):
        s = min(scheduler._moves[i].s, 1e9)
        y = scheduler.step(network(y, s), time, y).prev_sample
    torch.testing.assert_close(y, x, rtol=0, atol=1e-6)


VARIANCES = torch.tensor([0.01, 0.1, 1.0, 4.0], dtype=WIDE)
ORDERS: dict[str, tuple[Formula, float]] = {
    "first order": (Formula("x0", "lambda", 1), 1),
    "second, pictures": (Formula("x0", "lambda", 2, taper_below=0), 2),
    "second, noise in alpha-bar": (Formula("eps", "alpha_bar", 2, taper_below=0), 2),
    "second, flow": (Formula("v", "flow", 2, taper_below=0), 2),
    "first, corrected": (Formula("x0", "lambda", 1, corrector=True, taper_below=0), 2),
    "second, corrected": (Formula("x0", "lambda", 2, corrector=True, taper_below=0), 3),
    "third with a start-up": (Formula("x0", "lambda", 3, start_up="rk4", taper_below=0), 3),
    "fourth with a start-up": (Formula("x0", "lambda", 4, start_up="rk4", taper_below=0), 4),
    "fourth, noise, start-up": (Formula("eps", "lambda", 4, start_up="rk4", taper_below=0), 4),
    "third without one": (Formula("x0", "lambda", 3, taper_below=0), 2),
}


def gaussian_error(formula: Formula, count: int) -> float:
    """Return the error of `count` steps on a Gaussian, whose trajectories are known: x^ is
    proportional to sqrt(v + s^2).
    """
    path, top, bottom = edm_path(), 14.6, 0.05
    places = np.exp(np.linspace(math.log(top), math.log(bottom), count + 1)).tolist()
    moves = plan(formula, path, [*places, bottom / 100])
    x = start_x = torch.ones(4, dtype=WIDE)
    base, memory = x, list[Tensor]()
    for move in moves:
        if move.s == places[-1] and move.ends:
            break
        picture = VARIANCES / (VARIANCES + move.s**2) * x
        u = {"x0": picture, "eps": (x - picture) / move.s, "v": (x - picture) / move.s - picture}
        memory = [u[formula.kernel], *memory]
        x = move.anchor * base + sum(w * m for w, m in zip(move.weights, memory, strict=False))
        if move.ends:
            base, memory = x, memory[move.forget :]
    truth = start_x * ((VARIANCES + bottom**2) / (VARIANCES + top**2)).sqrt()
    return float((x - truth).pow(2).mean().sqrt())


@pytest.mark.parametrize("case", ORDERS)
def test_order_of_convergence(case: str) -> None:
    formula, promised = ORDERS[case]
    # Third order with a start of fourth order is better than it promises until steps are small.
    count = 320 if case == "third with a start-up" else 80
    errors = [gaussian_error(formula, each) for each in (count, 2 * count)]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(promised, abs=0.15)


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.sampled_from(["x0", "eps", "v"]),
    variable=st.sampled_from(["lambda", "sigma", "flow", "alpha_bar", "atan", "log_shift"]),
    order=st.integers(1, 4),
    ratio=st.floats(0.3, 0.9),
    coefficients=st.lists(st.floats(-1, 1), min_size=4, max_size=4),
)
def test_a_step_is_exact_where_u_is_a_polynomial_of_the_variable(
    kernel: Any, variable: Any, order: int, ratio: float, coefficients: list[float]
) -> None:
    s = 5.0
    known = [s / ratio**j for j in range(order)]
    to = s * ratio
    formula = Formula(kernel, variable, order)
    weights = adams_weights(formula, VP, known, s, to)

    def u(at: np.ndarray) -> np.ndarray:
        return np.polyval(coefficients[:order], TAU[variable](at))

    found = sum(w * float(u(np.array([each]))[0]) for w, each in zip(weights, known, strict=True))
    grid = np.linspace(s, to, 20001)
    middle = (grid[1:] + grid[:-1]) / 2
    kappa = {"x0": 1 / grid, "eps": grid, "v": grid / (1 + grid)}[kernel]
    expected = scale(kernel, VP, to) * float((u(middle) * np.diff(kappa)).sum())
    assert found == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("path", [VP, FLOW, edm_path()], ids=lambda path: path.kind)
def test_every_preset_moves_a_picture_with_no_noise_exactly(name: str, path: Any) -> None:
    """x0 constant is solved exactly by x0 kernels, and all weights are finite on every path."""
    formula = formula_of(name, path.kind)
    for count in (1, 2, 5, 20):
        moves = plan(formula, path, nodes(path, count))
        numbers = [w for move in moves for w in (move.anchor, *move.weights)]
        assert np.isfinite(numbers).all()
        last = moves[-1]
        if formula.kernel == "x0":
            assert last.anchor == 0 and sum(last.weights) == pytest.approx(1)


def test_eps_on_a_flow_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="use kernel='v'"):
        plan(Formula("eps", "flow", 2), FLOW, nodes(FLOW, 4))


def test_an_unknown_preset_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="preset='unpic' is unknown: choose one of ddim, pndm"):
        formula_of("unpic", "vp")
