"""The command line: what each command writes, and one line with exit code 2 for every mistake."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import skipstep
from skipstep.pipelines import generate
from skipstep.pipelines.batch import command as batch_command
from skipstep.pipelines.batch.plan import PlanMismatch
from skipstep.pipelines.batch.stopping import Stopped, Unwritable
from skipstep.pipelines.cli import doctor, main, options
from skipstep.pipelines.plugin_tables import allowed, option_table
from skipstep.pipelines.reference.prompts import load_prompts
from skipstep.plugins import catalog, recipe
from skipstep.plugins.options import build
from skipstep.testing.families import tiny_pipeline


@pytest.fixture(autouse=True)
def tiny_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in a tiny random pipeline for the reference model; sizes and steps are given below."""
    pipe = tiny_pipeline("pixart").pipe
    for home in (generate, batch_command):
        monkeypatch.setattr(home, "load_pipeline", lambda model, **_: pipe)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that runs a command line and returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["skipstep", *arguments])
        with pytest.raises(SystemExit) as left:
            main.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return run


TINY = ("--size", "32", "--steps", "4")


def test_generate_writes_pictures_and_prints_where_and_what_was_skipped(
    command: Any, tmp_path: Path
) -> None:
    code, out, _ = command(
        "generate", "a cat", "-o", str(tmp_path), "--num", "2", "--seed", "9", *TINY,
        "-p", "fora:interval=2,warmup_steps=1",
    )  # fmt: skip
    assert code == 0
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "0001-a-cat.png",
        "0002-a-cat.png",
    ]
    assert f"{tmp_path / '0001-a-cat.png'}  (seed 9)" in out and "(seed 10)" in out
    assert out.count("Skipped ") == 2
    with Image.open(tmp_path / "0001-a-cat.png") as image:
        assert image.size == (32, 32)


def test_show_prints_how_a_picture_was_made(command: Any, tmp_path: Path) -> None:
    command("generate", "a cat", "-o", str(tmp_path), "--guidance", "2", *TINY)
    code, out, _ = command("show", str(tmp_path / "0001-a-cat.png"))
    assert code == 0
    noted = json.loads(out)
    assert (noted["prompt"], noted["guidance_scale"], noted["model"]) == ("a cat", 2, "reference")


def test_a_recipe_file_is_an_arm_and_a_way_to_generate(command: Any, tmp_path: Path) -> None:
    path = tmp_path / "fast.yaml"
    recipe.save(path, [build("fora", {"interval": 2, "warmup_steps": 1})])
    code, out, _ = command("generate", "a cat", "-o", str(tmp_path), "--recipe", str(path), *TINY)
    assert code == 0 and "fora(" in out
    code, out, _ = command("compare", "a cat", "-o", str(tmp_path), "-p", str(path), *TINY)
    assert code == 0 and re.search(r"^fora:warmup_steps=1,interval=2 ", out, re.MULTILINE)


def test_batch_makes_every_row_and_again_nothing(command: Any, tmp_path: Path) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"prompt": "a cat", "id": "cat"}\n{"prompt": "a dog", "seed": 4}\n')
    arguments = (
        "batch", str(source), "-o", str(tmp_path / "out"), "--batch-size", "2", *TINY,
        "-p", "fora:interval=2,warmup_steps=1",
    )  # fmt: skip
    code, out, err = command(*arguments)
    assert code == 0, err
    assert f"2 of 2 pictures in {tmp_path / 'out'}" in out and "% of the block computations" in out
    code, shown, _ = command("show", str(tmp_path / "out/pictures/000000/cat.png"))
    assert code == 0 and json.loads(shown)["prompt"] == "a cat"
    assert command(*arguments)[:2] == (0, out)


def test_batch_ends_with_1_when_rows_have_no_picture_and_says_which(
    command: Any, tmp_path: Path
) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"prompt": "a cat"}\n{"promt": "x"}\n{"prompt": "b", "size": "33"}\n')
    code, out, _ = command("batch", str(source), "-o", str(tmp_path / "out"), *TINY)
    assert code == 1
    assert "1 of 3 pictures" in out and "1 row could not be used" in out
    assert "line 3: error: ValueError: `height` and `width` have to be divisible by 8" in out
    assert str(tmp_path / "out" / "quarantine.jsonl") in out


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (Stopped("stopped by SIGINT", 2), 130, "stopped by SIGINT; run the same command again"),
        (Stopped("stopped by SIGTERM", 15), 143, "run the same command again"),
        (Unwritable("the disk is full: free space"), 3, "the disk is full: free space, then run"),
        (PlanMismatch("other settings"), 2, "skipstep: other settings"),
    ],
)
def test_batch_says_with_its_exit_code_why_it_ended(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any, code: int, words: str
) -> None:
    def end(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(batch_command, "run_batch", end)
    found, out, err = command("batch", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "out"))
    assert found == code and words in err and out == ""


def test_compare_prints_the_table_and_ends_with_where_the_pictures_are(
    command: Any, tmp_path: Path
) -> None:
    target = tmp_path / "new" / "folder"
    code, out, _ = command(
        "compare", "a cat", "a dog", "-o", str(target), *TINY, "--guidance", "2",
        "-p", "fora:interval=2,warmup_steps=1", "-p", "easycache:threshold=0",
    )  # fmt: skip
    assert code == 0
    assert re.search(r"^uncached +4 +100%", out, re.MULTILINE)
    assert "easycache:threshold=0: nothing was skipped: " in out
    assert out.rstrip().endswith(f"All pictures on one sheet: {target / 'sheet.png'}")
    assert sorted(path.name for path in target.iterdir()) == [
        "compare.json",
        "index.html",
        "sheet.png",
    ]


def test_compare_takes_a_dozen_prompts_and_three_presets_by_default(
    command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def remember(pipe: Any, prompts: Any, arms: Any, **call: Any) -> Any:
        given.update(prompts=prompts, arms=arms, **call)
        raise FileNotFoundError("stop here")

    monkeypatch.setattr("skipstep.pipelines.compare.run.compare", remember)
    command("compare", "-o", str(tmp_path))
    assert len(given["prompts"]) == len(set(given["prompts"])) == 12
    assert len(given["arms"]) == 3 and given["steps"] == 20
    planned, *presets = given["arms"].values()
    assert planned.only_steps() == 20
    for arm in presets:
        build(*cli_spec(arm))
    command("compare", "-o", str(tmp_path), "--steps", "10")
    assert list(given["arms"].values()) == presets


def test_autotune_saves_recipe_front_and_numbers_and_prints_the_promise(
    command: Any, tmp_path: Path
) -> None:
    pytest.importorskip("optuna")
    code, out, _ = command(
        "autotune", "a cat", "a dog", "-o", str(tmp_path), *TINY, "--trials", "1",
        "--target-speedup", "1.2",
    )  # fmt: skip
    assert code == 0 and re.search(r"^Best: ", out, re.MULTILINE) and "in wall time" in out
    assert {path.name for path in tmp_path.iterdir()} == {
        "autotune.json",
        "front.png",
        "recipe.yaml",
        "trials.db",
    }
    assert recipe.load(tmp_path / "recipe.yaml")
    code, _, error = command("autotune", "a cat", "a dog", "-o", str(tmp_path), *TINY)
    assert code == 2 and "0 targets given: give one of target_speedup" in error


def test_the_reference_model_gets_one_thread_and_others_torch_s_choice() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        options.use_threads(None, "someone/model")
        assert torch.get_num_threads() == 2
        options.use_threads(None, None)
        assert torch.get_num_threads() == 1
        options.use_threads(2, None)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_count_takes_evaluation_prompts_from_first_to_last() -> None:
    known = [prompt["prompt"] for prompt in load_prompts()]
    assert main.default_prompts(256) == known
    some = main.default_prompts(64)
    assert some == known[::4] and len(set(some)) == 64


def cli_spec(arm: str) -> tuple[str, dict[str, Any]]:
    from skipstep.plugins.options import parse_spec

    return parse_spec(arm)


def test_plugins_lists_every_plugin_of_the_catalogue(command: Any) -> None:
    code, out, _ = command("plugins")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()[1:] if line[:1].strip()} >= set(
        catalog.names()
    )


@pytest.mark.parametrize("name", sorted(catalog.BUILTIN))
def test_the_options_of_every_plugin_are_shown_with_default_and_bounds(
    command: Any, name: str
) -> None:
    code, out, _ = command("plugins", name)
    assert code == 0
    plugin = catalog.load(name)
    for option in plugin.__pydantic_fields__:
        assert re.search(rf"^{option} ", out, re.MULTILINE)
    assert plugin.summary in " ".join(out.split())  # a title is folded to its table's width
    assert option_table(name).row_count == len(plugin.__pydantic_fields__)


def test_bounds_are_read_from_the_schema() -> None:
    assert allowed({"type": "number", "exclusiveMinimum": 0, "maximum": 1}, {}) == "number > 0 <= 1"
    assert allowed({"enum": ["a", "b"]}, {}) == "a, b"
    assert allowed({"$ref": "#/$defs/X"}, {"X": {"type": "boolean"}}) == "boolean"


def test_the_doctor_prints_its_findings_and_its_exit_code_tells(
    command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.Finding("a", "absent", "b [x]")]))
    code, out, _ = command("doctor")
    assert code == 0 and "b [x]" in out
    monkeypatch.setattr(doctor, "examine", lambda: iter([doctor.Finding("a", "broken", "b")]))
    assert command("doctor")[0] == 1


def test_version_is_the_package_s(command: Any) -> None:
    assert command("--version") == (0, f"skipstep {skipstep.__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "a", "-p", "ezcache"), "skipstep: unknown plugin 'ezcache'"),
        (("generate", "a", "-p", "easycache:treshold=1"), "did you mean 'threshold'?"),
        (("generate", "a", "-p", "easycache:threshold=-3"), "threshold=-3 is not allowed"),
        (("generate", "a", "--size", "big"), "size 'big' is not a size: write 256 or 512x768"),
        (("generate", "a", "--recipe", "missing.yaml"), "missing.yaml"),
        (("plugins", "forra"), "did you mean 'fora'?"),
        (("show", "missing.png"), "missing.png"),
        (("generate", "a", "--steps", "0"), "--steps"),
        (("compare", "a", "-p", "fora", "-p", "fora"), "the arm 'fora' is there twice"),
        (("compare", "a", "--count", "8"), "give prompts or --count, not both"),
        (("batch", "missing.jsonl"), "missing.jsonl: there is no such file"),
        (("batch", "prompts.json"), "the ending '.json' is not known"),
        (("batch", "p.txt", "--mode", "plan"), "mode='plan' is not allowed: must be 'planned'"),
        (("batch", "p.txt", "--format", "png"), "format='png' is not allowed: must be 'folder'"),
        (("batch", "p.txt", "--timeout", "9"), "--timeout needs --workers 1 or more"),
        (
            ("batch", "p.txt", "--engine", "spark"),
            "engine='spark' is not allowed: must be local or",
        ),
        (("batch", "p.txt", "--task", "draw"), "task='draw' is not allowed: must be 'pictures'"),
        (("batch", "p.txt", "--task", "compare"), "--task compare needs an arm: -p easycache"),
    ],
)
def test_a_mistake_is_told_on_stderr_with_exit_code_2_and_no_traceback(
    command: Any, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    if arguments[0] in ("generate", "compare", "batch"):
        arguments = (*arguments, "-o", str(tmp_path / "out"))
    code, out, err = command(*arguments)
    assert code == 2 and message in err and out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()
