"""Tiny pipelines: each builds, repeats itself, and treats a batch as so many single runs."""

from typing import Any

import pytest
import torch

from skipstep.testing import EXTRA_FAMILIES, FAMILIES, run, tiny_pipeline

ALL = FAMILIES + EXTRA_FAMILIES


def calls_of(module: torch.nn.Module) -> list[int]:
    """Record the number of rows of every call of a module."""
    rows: list[int] = []

    def record(
        module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        first = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        assert isinstance(first, torch.Tensor | list)
        rows.append(len(first))

    module.register_forward_pre_hook(record, with_kwargs=True)
    return rows


def test_there_are_sixteen_families_and_a_modular_one() -> None:
    assert len(set(FAMILIES)) == 17
    assert "flux_modular" in FAMILIES


@pytest.mark.parametrize("family", ALL)
def test_two_builds_and_two_runs_are_equal(family: str) -> None:
    first, second = tiny_pipeline(family), tiny_pipeline(family)
    picture = run(first)
    assert torch.isfinite(picture).all()
    assert picture.std() > 0.01
    assert torch.equal(picture, run(first))
    assert torch.equal(picture, run(second))


@pytest.mark.parametrize("family", ALL)
def test_a_sample_of_a_batch_is_its_single_run(family: str) -> None:
    tiny = tiny_pipeline(family)
    batch = run(tiny, batch=3, seed=5)
    assert batch.shape[0] == 3
    for place in range(3):
        single = run(tiny, seed=5 + place)
        torch.testing.assert_close(batch[place : place + 1], single, rtol=0, atol=3e-5)
    assert (batch[0] - batch[1]).abs().max() > 0.05


@pytest.mark.parametrize("family", ALL)
def test_the_prompt_matters(family: str) -> None:
    tiny = tiny_pipeline(family)
    other: dict[str, Any] = {tiny.prompt_argument: [tiny.prompts[1]]}
    assert not torch.equal(run(tiny), run(tiny, **other))


@pytest.mark.parametrize("family", ALL)
def test_the_declared_guidance_is_what_the_denoiser_sees(family: str) -> None:
    tiny = tiny_pipeline(family)
    rows = calls_of(getattr(tiny.pipe, tiny.denoiser))
    if family == "wan22":
        rows_2 = calls_of(tiny.pipe.transformer_2)
        run(tiny, steps=10)
        assert rows and rows_2 and len(rows) + len(rows_2) == 20
        return
    run(tiny, steps=4, batch=2)
    expected = {"batched": [4] * 4, "sequential": [2] * 8, "distilled": [2] * 4}
    assert rows == expected[tiny.guidance]


def test_building_leaves_the_callers_random_numbers_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tiny_pipeline("flux")
    torch.testing.assert_close(torch.rand(4), expected, rtol=0, atol=0)


def test_an_unknown_family_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match="unknown family 'flax': choose one of flux, "):
        tiny_pipeline("flax")


def test_annotations_are_checked_while_tests_run() -> None:
    with pytest.raises(TypeError, match="family"):
        tiny_pipeline(3)  # type: ignore[arg-type]
