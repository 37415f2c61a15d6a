"""What the page takes from a stranger, and what it refuses in words."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstep.caching.gates.schedule import Schedule
from skipstep.pipelines.batch.rows import Row
from skipstep.pipelines.ui.limits import (
    Limits,
    check_upload,
    read_arms_text,
    read_frames,
    read_name,
    read_optional,
    read_prompts,
    read_recipe,
    read_settings,
)
from skipstep.plugins.errors import PluginError

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def test_settings_become_a_row() -> None:
    row = read_settings(
        {
            "prompt": "a fox",
            "negative": "",
            "seed": 7.0,
            "steps": 12,
            "size": "64x128",
            "guidance": 2,
            "plugins": "easycache:threshold=0.1",
        },
        Limits(),
    )
    assert isinstance(row, Row)
    assert (row.prompt, row.seed, row.steps, row.width, row.height) == ("a fox", 7, 12, 64, 128)
    assert row.negative is None and row.guidance == 2.0
    assert row.plugins == '[{"name":"easycache","options":{"threshold":0.1}}]'


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"prompt": ""}, "prompt is empty"),
        ({}, "prompt is empty"),
        ({"prompt": {"a": 1}}, "must be text"),
        ({"prompt": "x" * 4001}, "at most 4000"),
        ({"prompt": "a\x1b[31m"}, "control character U\\+001B"),
        ({"prompt": "a", "seed": -1}, "seed=-1 is not allowed"),
        ({"prompt": "a", "seed": "seven"}, "must be a whole number"),
        ({"prompt": "a", "steps": 101}, "steps=101 is not allowed here: 1 to 100"),
        ({"prompt": "a", "steps": 10**9}, "steps=1000000000 is not allowed"),
        ({"prompt": "a", "size": "4096x4096"}, "at most 4,194,304 pixels"),
        ({"prompt": "a", "size": "big"}, "is not a size"),
        ({"prompt": "a", "guidance": float("nan")}, "guidance=nan is not allowed"),
        ({"prompt": "a", "plugins": "nonesuch"}, "unknown plugin 'nonesuch'"),
        ({"prompt": "a", "plugins": "easycache:treshold=1"}, "did you mean 'threshold'"),
        ({"prompt": "a", "plugins": {"name": "fora"}}, "it must be text such as easycache"),
        ({"prompt": "a", "file": "/etc/passwd"}, "unknown field 'file'"),
    ],
)
def test_what_cannot_be_used_is_refused_in_words(given: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginError, match=words):
        read_settings(given, Limits())


@settings(max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["prompt", "negative", "seed", "size", "steps", "guidance", "plugins"]),
        ANYTHING,
    )
)
def test_whatever_is_given_the_answer_is_a_row_or_words(given: dict[str, Any]) -> None:
    try:
        row = read_settings(given, Limits())
    except PluginError as error:
        assert str(error)
    else:
        assert 1 <= row.steps <= Limits().steps


def test_a_recipe_never_opens_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "schedule.json"
    Schedule(steps=4, compute=(0, 2)).save(file)
    recipes = [
        f'cache:gate={{type: schedule, schedule: "{file}"}}',
        f'magcache:ratios="{file}"',
        f'teacache:coefficients="{file}"',
        str(file.with_suffix(".yaml")),
        "/etc/passwd",
    ]
    opened: list[str] = []
    monkeypatch.setattr(Path, "is_file", lambda self: opened.append(str(self)))
    monkeypatch.setattr("skipstep.files.artefact._read", opened.append)
    for recipe in recipes:
        with pytest.raises(PluginError):
            read_recipe(recipe)
    assert not opened


def test_the_schedule_itself_is_taken() -> None:
    (cache,) = read_recipe(
        "cache:gate={type: schedule, schedule: {version: 1, kind: skipstep-schedule, steps: 4, "
        "compute: [0, 2]}}"
    )
    assert cache.gate.schedule.compute == (0, 2)


def test_a_scheduler_cannot_be_told_to_make_endless_tables() -> None:
    with pytest.raises(PluginError, match="the number 1000000000000 is not allowed"):
        read_recipe("scheduler:config={num_train_timesteps: 1000000000000}")


def test_frames_and_empty_numbers() -> None:
    row = read_settings({"prompt": "a", "size": "1280x720"}, Limits())
    assert read_frames(17, row, Limits()) == 17
    with pytest.raises(PluginError, match="17 frames of 1280x720 are not allowed"):
        read_frames(17, row, Limits(clip_pixels=10**6))
    with pytest.raises(PluginError, match="frames=1 is not allowed here: 2 to 129"):
        read_frames(1, row, Limits())
    assert read_optional("guidance", " ") is None and read_optional("guidance", "2.5") == 2.5
    with pytest.raises(PluginError, match="guidance is 'much': it must be a number, or empty"):
        read_optional("guidance", "much")


def test_lists_have_an_end() -> None:
    limits = Limits(prompts=2, arms=1)
    assert read_prompts("a fox\n\n a cat \n", limits) == ["a fox", "a cat"]
    with pytest.raises(PluginError, match="3 prompts were given: 1 to 2"):
        read_prompts("a\nb\nc", limits)
    with pytest.raises(PluginError, match="0 prompts were given"):
        read_prompts(" \n", limits)
    with pytest.raises(PluginError, match="prompts are 7: give one a line"):
        read_prompts(7, limits)
    with pytest.raises(PluginError, match="2 recipes were given: 1 to 1"):
        read_arms_text("fora\neasycache", limits)
    with pytest.raises(PluginError, match="at most 200"):
        read_name("model", "x" * 201)


def test_an_upload_is_looked_at_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    file.write_bytes(b"12345")
    assert check_upload(str(file), Limits()) == file
    with pytest.raises(PluginError, match="5 bytes: at most 4"):
        check_upload(file, Limits(upload_bytes=4))
    with pytest.raises(PluginError, match="is gone"):
        check_upload(tmp_path / "b.png", Limits())
    with pytest.raises(PluginError, match="no file was given"):
        check_upload(None, Limits())
