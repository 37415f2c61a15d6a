"""Failure cases that no other file asks about, and the page that says where all 35 are tested."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from skipstep.pipelines.batch.making import LEAST_SPREAD, is_out_of_memory, why_no_picture
from skipstep.pipelines.splat.capture import CaptureError, read_pictures
from skipstep.testing import run, tiny_pipeline

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
STEPS = 6


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_pipeline("sd3")


@pytest.mark.parametrize("name", ["easycache", "fbcache", "taylorseer"])
def test_latents_of_another_size_in_the_middle_of_a_run_start_anew(tiny: Any, name: str) -> None:
    def shrink(pipe: Any, step: int, time: Any, given: dict[str, Any]) -> dict[str, Any]:
        latents = given["latents"]
        return {"latents": latents[..., : latents.shape[-1] // 2]} if step == 3 else {}

    def computed() -> set[int]:
        calls = tiny.pipe.plugin_report().calls
        return {call.step for call in calls if all(choice.compute for choice in call.choices)}

    plain = run(tiny, steps=STEPS, callback_on_step_end=shrink)
    options = {"interval": 4} if name == "taylorseer" else {"threshold": 1.0}
    with tiny.pipe.plugins({"name": name, "options": {"warmup_steps": 2, **options}}):
        run(tiny, steps=STEPS)
        assert 4 not in computed()
        first = run(tiny, steps=STEPS, callback_on_step_end=shrink)
        assert 4 in computed()
        assert first.shape == plain.shape and bool(torch.isfinite(first).all())
        assert torch.equal(run(tiny, steps=STEPS, callback_on_step_end=shrink), first)


def test_after_an_end_at_any_step_the_next_run_is_as_if_nothing_had_been(tiny: Any) -> None:
    def end_at(last: int) -> Callable[..., dict[str, Any]]:
        def end(pipe: Any, at: int, *_: Any) -> dict[str, Any]:
            if at == last:
                # What a closed browser tab raises inside a run.
                raise GeneratorExit
            return {}

        return end

    with tiny.pipe.plugins({"name": "fora", "options": {"interval": 2, "warmup_steps": 1}}):
        clean = run(tiny, steps=4)
        for last in range(4):
            with pytest.raises(GeneratorExit):
                run(tiny, steps=4, seed=5, callback_on_step_end=end_at(last))
            assert torch.equal(run(tiny, steps=4), clean)


def test_memory_that_really_ends_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(("spread", "why"), [(0.99, "black"), (1.01, None)])
def test_a_picture_is_of_one_colour_below_one_step_of_8_bits(
    spread: float, why: str | None
) -> None:
    half = torch.full((1, 1, 3, 8, 4), spread * LEAST_SPREAD)
    assert why_no_picture(torch.cat([half, -half], dim=-1)) == why


def test_a_small_file_that_holds_a_huge_picture_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "huge.png"
    Image.new("1", (9000, 9000)).save(path)
    assert path.stat().st_size < 50_000
    with pytest.raises(CaptureError, match=r"9000 x 9000 pixels: at most 64,000,000 are read"):
        read_pictures([path])


def test_no_code_of_ours_opens_a_pickle_or_runs_what_comes_with_a_model() -> None:
    shipped = [path for path in ROOT.rglob("*.py") if not is_apart(path)]
    assert len(shipped) > 200
    for path in shipped:
        text = path.read_text(encoding="utf-8")
        for call in re.findall(r"torch\.load\([^\n]*", text):
            assert "weights_only=True" in call, f"{path}: {call}"
        for word in ("pickle.load(", "weights_only=False", "trust_remote_code", "custom_pipeline="):
            assert word not in text, f"{path}: {word}"


def is_apart(path: Path) -> bool:
    return bool({"tests", ".venv", ".typing", "build"} & set(path.relative_to(ROOT).parts))


def test_the_page_names_a_test_of_every_case_or_says_why_there_is_none() -> None:
    rows = re.findall(r"^\| (\d+) \| (.*) \| (.*) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    assert [int(number) for number, *_ in rows] == list(range(1, 36))
    for number, _, _, where in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", where)
        assert named or where.startswith("no: "), f"case {number}: {where}"
        for file, name in named:
            text = (ROOT / file).read_text(encoding="utf-8")
            assert re.search(rf"^def {name}\(", text, re.MULTILINE), f"case {number}: {file} {name}"
