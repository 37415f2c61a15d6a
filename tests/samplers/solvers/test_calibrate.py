"""Calibrated solvers: they beat what they were fitted against, and say where they do not serve."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from torch import Tensor

from skipstep.files.artefact import refusing_files
from skipstep.pipelines.tune.calibrate_solver import calibrate_solver
from skipstep.plugins.errors import BadOption, Incompatible, PluginError
from skipstep.samplers.solvers.adams import Formula
from skipstep.samplers.solvers.calibrate import (
    KERNELS,
    PLACES,
    Advance,
    Calibration,
    Place,
    errors_of,
    search,
)
from skipstep.samplers.solvers.calibrated import Calibrated
from skipstep.samplers.solvers.fit import DenseTrajectory, base_rows, fit_row
from skipstep.samplers.solvers.nodes import nodes
from skipstep.samplers.solvers.paths import betas_of, flow_path, vp_path
from skipstep.samplers.solvers.scheduler import ExponentialAdamsScheduler
from skipstep.samplers.solvers.solver_file import SolverFile
from skipstep.testing import run, tiny_pipeline
from skipstep.testing.mixtures import Network, mixture, solve_finely

WIDE = torch.float64
VP = vp_path(betas_of("scaled_linear", 0.00085, 0.012, 1000))
CONFIG: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
}


def noise(seed: int, count: int, dimension: int = 64) -> Tensor:
    return torch.randn(count, dimension, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


def exact_drive(name: str, start: Tensor, label: Tensor | None = None) -> Any:
    """Return a drive over an exact score, from the same noises every time."""
    target = mixture(name)

    def drive(scale: float | None, times: Sequence[float], advance: Advance) -> Tensor:
        network = Network(target, VP, label=label, guidance=1.0 if scale is None else scale)
        x = start
        for i, time in enumerate(times):
            x = advance(i, x, network(x, time))
        return x

    return drive


@pytest.fixture(scope="module")
def made() -> SolverFile:
    job = Calibration(exact_drive("latent", noise(11, 32)), VP, CONFIG, 32)
    return search(job, 5)


def sampled(file: SolverFile, start: Tensor, preset: str | None = None) -> Tensor:
    """Solve with the file's rows, or with a published solver on its best spacing."""
    table = None
    if preset is None:
        rows = file.table(None)
        assert rows is not None
        table = {"kernel": rows.kernel, "nodes": rows.nodes, "rows": rows.rows}
    fallback = file.fallback
    scheduler = ExponentialAdamsScheduler(
        **CONFIG,
        preset=preset or fallback.preset,
        spacing=fallback.spacing,
        spacing_offset=fallback.offset,
        table=table,
    )
    scheduler.set_timesteps(file.steps)
    network, x = Network(mixture("latent"), VP), start
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, float(t)), t, x).prev_sample
    assert network.calls == file.steps
    return x


def test_it_halves_the_error_of_the_best_published_solver_on_unseen_noise(
    made: SolverFile,
) -> None:
    start = noise(1, 256)
    truth = solve_finely(mixture("latent"), VP, start)
    ours = errors_of(sampled(made, start), truth)
    theirs = errors_of(sampled(made, start, made.fallback.preset), truth)
    assert ours.median() < theirs.median() / 3
    assert ours.pow(2).mean().sqrt() < theirs.pow(2).mean().sqrt() / 2
    assert made.measured.calibrated < made.measured.fallback < made.measured.plain
    assert made.numbers < 100


def test_a_file_reads_back_as_it_was_written(made: SolverFile, tmp_path: Path) -> None:
    made.save(tmp_path / "solver.json")
    assert SolverFile.load(tmp_path / "solver.json") == made
    assert (tmp_path / "solver.json").stat().st_size < 8192


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"times": [1.0, 0.5, 0.6, 0.3, 0.1, 0.0]}, "times must fall"),
        ({"rows": [[[1.0, 0.5]] * 4]}, "4 rows for 5 steps"),
        ({"rows": [[[1.0, 0.5, 0.1]] * 5]}, "reaches further back than the first step"),
        ({"guidance": [3.0, 1.0]}, "guidance must rise"),
        ({"kind": "skipstep-schedule"}, "'kind' must be 'skipstep-solver'"),
        ({"extra": 1}, "Unexpected keyword argument"),
        ({"rows": [[[float("nan"), 0.5]] * 5]}, "NaN is not a number"),
    ],
)
def test_a_spoilt_file_is_refused_in_words(
    made: SolverFile, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "solver.json"
    made.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        SolverFile.load(path)


def test_a_strangers_path_to_a_solver_is_not_opened(made: SolverFile, tmp_path: Path) -> None:
    path: Any = str(tmp_path / "solver.json")
    made.save(path)
    with refusing_files(), pytest.raises(ValueError, match="a path is not taken here"):
        Calibrated(file=path)


def test_a_row_of_exact_data_is_found_and_a_stray_trajectory_does_not_bend_it() -> None:
    random = torch.Generator().manual_seed(0)
    features = torch.randn(3, 8, 200, generator=random, dtype=WIDE)
    row = torch.tensor([0.9, 0.3, -0.2], dtype=WIDE)
    target = torch.einsum("k,kbd->bd", row, features)
    found = fit_row(features, target, [1.0, 0.0, 0.0], ridge=1e-10)
    torch.testing.assert_close(found, row, rtol=0, atol=1e-6)
    target[0] = 3 * torch.randn(200, generator=random, dtype=WIDE)
    target += 1e-3 * torch.randn(8, 200, generator=random, dtype=WIDE)
    bent = torch.linalg.lstsq(features.flatten(1).T, target.flatten()).solution
    found = fit_row(features, target, [1.0, 0.0, 0.0], ridge=1e-10)
    assert (found - row).abs().max() < (bent - row).abs().max() / 10
    held = torch.arange(8) > 0
    found = fit_row(features, target, [1.0, 0.0, 0.0], ridge=1e-10, fitted_on=held)
    torch.testing.assert_close(found, row, rtol=0, atol=1e-3)
    stiff = fit_row(features, target, [1.0, 0.0, 0.0], ridge=1e9)
    torch.testing.assert_close(stiff, torch.tensor([1.0, 0, 0], dtype=WIDE), rtol=0, atol=1e-6)


def test_a_dense_trajectory_is_exact_on_cubics_of_flow_time() -> None:
    path = flow_path()
    found = DenseTrajectory(path)
    for t in (1.0, 0.6, 0.3, 0.0):
        s = float("inf") if t == 1 else t / (1 - t)
        found.add(s, torch.full((1, 2), t**3 - t), torch.full((1, 2), 3 * t * t - 1))
    for t in (0.9, 0.45, 0.1):
        expected = torch.full((1, 2), t**3 - t)
        torch.testing.assert_close(found.at(t / (1 - t)), expected, rtol=0, atol=1e-6)


def test_guidance_between_two_scales_mixes_their_rows(made: SolverFile) -> None:
    doubled = tuple(tuple(2 * w for w in row) for row in made.rows[0])
    both = replace(
        made, guidance=(2.0, 6.0), guidance_range=(2.0, 6.0), rows=(made.rows[0], doubled)
    )
    table = both.table(3.0)
    assert table is not None
    assert table.rows[2] == pytest.approx(tuple(1.25 * w for w in made.rows[0][2]))
    assert both.serves(6.0) and not both.serves(7.0) and both.serves(None)


def test_published_solvers_are_the_fallback_where_no_fit_beats_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With rows stiffly tied to plain Euler nothing fitted can win."""
    drive = exact_drive("latent", noise(11, 8))
    job = Calibration(drive, VP, CONFIG, 8, places=(Place(),), ridges=(1e9,))
    monkeypatch.setitem(KERNELS, "vp", (Formula("x0", "lambda", 1),))
    found = search(job, 5)
    assert found.rows == () and found.table(None) is None
    assert found.measured.calibrated == found.measured.fallback


def test_rows_of_a_formula_are_what_its_scheduler_does() -> None:
    placed = nodes(VP, 5)
    formula = Formula("x0", "lambda", 2)
    table = {"kernel": "x0", "nodes": placed, "rows": base_rows(formula, VP, placed, 3)}
    x, both = noise(3, 2), []
    for config in ({"table": table}, {"preset": "exact2", "corrector": False}):
        scheduler = ExponentialAdamsScheduler(**CONFIG, **config)
        scheduler.set_timesteps(5)
        y = x
        for t in scheduler.timesteps:
            y = scheduler.step(torch.tanh(y), t, y).prev_sample
        both.append(y)
    torch.testing.assert_close(both[0], both[1], rtol=0, atol=1e-10)


# On pipelines.


@pytest.mark.parametrize("family", ["sdxl", pytest.param("sd3", marks=pytest.mark.slow)])
def test_a_pipeline_is_calibrated_and_restored(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(shift=2.0) if family == "sd3" else Place("karras")
    monkeypatch.setitem(PLACES, "flow" if family == "sd3" else "vp", (place,))
    tiny = tiny_pipeline(family)
    call = {k: v for k, v in tiny.call.items() if k not in ("guidance_scale", "output_type")}
    call.pop(tiny.prompt_argument, None)
    own, plain = tiny.pipe.scheduler, run(tiny, steps=3)
    path = tmp_path / "solver.json"
    plugin = calibrate_solver(
        tiny.pipe,
        list(tiny.prompts),
        steps=3,
        guidance=4.0,
        trajectories=4,
        reference_steps=8,
        path=path,
        **call,
    )
    assert tiny.pipe.scheduler is own
    assert torch.equal(run(tiny, steps=3), plain)
    assert plugin.solver == SolverFile.load(path)
    assert plugin.solver.guidance_range == (2.0, 7.0)
    tiny.pipe.enable_plugin("calibrated", file=str(path))
    found = run(tiny, steps=3, guidance_scale=4.0)
    assert torch.isfinite(found).all()
    assert torch.equal(run(tiny, steps=3, guidance_scale=4.0), found)
    assert tiny.pipe.scheduler is own
    with pytest.raises(Incompatible, match="steps: made for 3, running 5"):
        run(tiny, steps=5, guidance_scale=4.0)
    assert tiny.pipe.scheduler is own
    with pytest.raises(Incompatible, match="guidance: made for 2 to 7, running 9"):
        run(tiny, steps=3, guidance_scale=9.0)
    tiny.pipe.enable_plugin("calibrated", file=str(path), outside="fallback")
    assert torch.isfinite(run(tiny, steps=5, guidance_scale=9.0)).all()
    tiny.pipe.disable_plugins()
    assert torch.equal(run(tiny, steps=3), plain)
    other = tiny_pipeline("flux" if family == "sdxl" else "pixart")
    with pytest.raises(Incompatible, match="the file was made for a (flow|vp) path"):
        other.pipe.enable_plugin("calibrated", file=str(path))


def test_another_model_is_refused(made: SolverFile) -> None:
    tiny = tiny_pipeline("sdxl")
    tiny.pipe.enable_plugin(
        Calibrated(file=replace(made, fingerprint={"denoisers": ["Another 0123"]}))
    )
    with pytest.raises(Incompatible, match="denoisers: made for .'Another 0123'."):
        run(tiny, steps=5)


def test_a_solver_fitted_to_the_pipelines_own_end_is_nearer_to_it_than_plain_steps() -> None:
    tiny = tiny_pipeline("sd3")
    call = {k: v for k, v in tiny.call.items() if k not in ("guidance_scale", "output_type")}
    call.pop(tiny.prompt_argument, None)
    own, many, few = tiny.pipe.scheduler, run(tiny, steps=9), run(tiny, steps=3)
    plugin = calibrate_solver(
        tiny.pipe,
        list(tiny.prompts),
        steps=3,
        guidance=tiny.call["guidance_scale"],
        trajectories=4,
        reference="own",
        reference_steps=9,
        **call,
    )
    assert tiny.pipe.scheduler is own and "step" not in vars(own)
    assert torch.equal(run(tiny, steps=9), many)
    tiny.pipe.enable_plugin(plugin)
    assert (run(tiny, steps=3) - many).norm() < 0.7 * (few - many).norm()
    # The call need not say how many steps a fitted solver takes.
    noise = torch.Generator("cpu").manual_seed(0)
    tiny.pipe(tiny.prompts[0], **tiny.call, generator=noise)
    assert tiny.pipe.plugin_report().steps == 3


def test_a_scheduler_that_adds_noise_cannot_be_followed() -> None:
    tiny = tiny_pipeline("sd15")
    config = tiny.pipe.scheduler.config
    tiny.pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(config)
    with pytest.raises(PluginError, match="adds noise of its own.*reference='fine'"):
        calibrate_solver(tiny.pipe, "a fox", reference="own")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "was given no prompts"),
        ({"trajectories": 2}, "2 noises are too few"),
        ({"steps": 1}, "steps=1 is not allowed"),
        ({"generator": None}, "generator cannot be passed on"),
    ],
)
def test_senseless_calibrations_are_refused(arguments: dict[str, Any], message: str) -> None:
    tiny = tiny_pipeline("sd3")
    with pytest.raises(PluginError, match=message):
        calibrate_solver(tiny.pipe, **{"prompts": "a fox", **arguments})


def test_a_missing_file_is_refused_in_words() -> None:
    with pytest.raises(Incompatible, match="it needs file=..., which skipstep.calibrate_solver"):
        tiny_pipeline("sd3").pipe.enable_plugin("calibrated")
    with pytest.raises(BadOption, match="there is no such file: make one with skipstep calibrate"):
        tiny_pipeline("sd3").pipe.enable_plugin("calibrated", file="nowhere.json")
