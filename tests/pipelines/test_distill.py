"""`skipstep distill` from a file to a student that runs; mistakes in the file are named."""

from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from skipstep.pipelines.cli.main import app
from skipstep.pipelines.distill.job import distill, read_job
from skipstep.pipelines.reference.load import load_reference
from skipstep.plugins.errors import BadOption, PluginError

JOB = """
version: 1
recipe: {name: trajectory, options: {at: [1, 0.5, 0]}}
steps: 2
teacher: {steps: 2, paths: 2, batch: 2}
training: {iterations: 2, batch: 2}
prompts: ["a red heart, 3d style", "a pizza, flat style"]
muon: true
"""


def test_a_job_becomes_a_student_that_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr("skipstep.pipelines.distill.job.SHARD", 2)
    (tmp_path / "job.yaml").write_text(JOB, encoding="utf-8")
    arguments = ["distill", str(tmp_path / "job.yaml"), "--output", str(tmp_path / "student")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "2-step student by trajectory after 2 iterations on 2 paths" in done.output
    assert list((tmp_path / "student" / "run").glob("*.png"))
    pipe = load_reference()
    pipe.set_progress_bar_config(disable=True)
    pipe.enable_plugin("few_step", weights=str(tmp_path / "student"))
    calls: list[int] = []
    pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    pipe("a red heart", output_type="latent")
    assert len(calls) == 2


def test_an_adapter_is_distilled_from_anchored_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SpeedUpNet on the picture model: one call a step, and the prompt not to follow counts."""
    torch.set_num_threads(1)
    monkeypatch.setattr("skipstep.pipelines.distill.job.SHARD", 2)
    file = tmp_path / "job.yaml"
    text = JOB.replace("trajectory, options: {at: [1, 0.5, 0]}", "speedup, options: {steps: 2}")
    text = text.replace("steps: 2, paths: 2", "steps: 2, anchor: 1, paths: 2")
    file.write_text(text.replace("muon: true", ""), encoding="utf-8")
    pipe, job = load_reference(), read_job(file)
    pipe.set_progress_bar_config(disable=True)
    student = distill(job, pipe, tmp_path / "student")
    assert student.adapter == "speedup" and student.guidance == 3.0
    pipe.enable_plugin("few_step", weights=str(tmp_path / "student"))
    rows: list[int] = []
    pipe.transformer.pos_embed.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    pipe("a red heart", negative_prompt="blue", output_type="latent")
    assert rows == [1, 1]


def test_the_shipped_job_is_readable() -> None:
    package = Path(__file__).resolve().parents[2]
    job = read_job(package / "pipelines" / "reference" / "students" / "trajectory-4.yaml")
    assert job.distiller().nodes(4) == (1.0, 0.75, 0.5, 0.25, 0.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (("trajectory, options: {at: [1, 0.5, 0]}", "trajectori"), BadOption, "did you mean"),
        (("trajectory, options: {at: [1, 0.5, 0]}", "imm"), BadOption, "no diffusers denoiser is"),
        (("steps: 2\nteacher", "steps: 3\nteacher"), BadOption, "this student takes 2 steps"),
        (("muon: true", "moun: true"), PluginError, "moun"),
        (("iterations: 2", "iterations: 0"), PluginError, "training.iterations"),
    ],
)
def test_mistakes_in_the_file_are_named(
    change: tuple[str, str], error: type[Exception], message: str, tmp_path: Path
) -> None:
    (tmp_path / "job.yaml").write_text(JOB.replace(*change), encoding="utf-8")
    with pytest.raises(error, match=message):
        read_job(tmp_path / "job.yaml")
