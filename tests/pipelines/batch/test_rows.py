"""Rows: strict fields, words for every mistake, seeds by id, names that are safe as files."""

import re
import string
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstep.pipelines.batch.files import read_file
from skipstep.pipelines.batch.rows import FIELDS, LARGEST_SEED, Row, RowError, read_row

DEFAULTS = Row(id="", line=0, prompt="", seed=7, steps=12, guidance=3.0)


def read(line: int = 5, **fields: Any) -> Row:
    return read_row(line, {"prompt": "a cat", **fields}, DEFAULTS)


def test_a_row_takes_what_it_does_not_say_from_the_job() -> None:
    row = read()
    assert (row.id, row.line, row.steps, row.guidance) == ("0000005", 5, 12, 3.0)
    assert read(steps=4, guidance=1, size="64x32").group == (64, 32, None, 4, 1.0, False, "[]")
    assert read(guidance=None) == row


def test_a_seed_depends_on_the_id_and_the_job_not_on_the_place() -> None:
    assert read(line=1, id="a").seed == read(line=9, id="a").seed != read(id="b").seed
    other = read_row(1, {"prompt": "a cat", "id": "a"}, Row(id="", line=0, prompt="", seed=8))
    assert other.seed != read(id="a").seed
    assert 0 <= read().seed <= LARGEST_SEED


@pytest.mark.parametrize("seed", [0, LARGEST_SEED])
def test_a_given_seed_is_taken_as_it_is(seed: int) -> None:
    assert read(seed=seed).seed == seed


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"promt": "x"}, "unknown field 'promt', did you mean 'prompt'? Fields: id, prompt"),
        ({"negative_prompt": "x"}, "did you mean 'negative'?"),
        ({"prompt": ""}, "prompt is empty"),
        ({"prompt": 3}, "prompt is 3: it must be text"),
        ({"prompt": "x" * 1_000_000}, "prompt has 1000000 characters: at most 4000"),
        ({"prompt": "a\x1b[2Jb"}, "control character U+001B at position 2"),
        ({"prompt": "a\x00b"}, "U+0000"),
        ({"prompt": "a\ud800b"}, "U+D800"),
        ({"negative": "a\rb"}, "U+000D"),
        ({"seed": -1}, "seed=-1 is not allowed: 0 to 9223372036854775807"),
        ({"seed": 2**63}, "is not allowed"),
        ({"seed": True}, "seed is True: it must be a whole number"),
        ({"seed": "7"}, "seed is '7': it must be a whole number"),
        ({"seed": 1.5}, "whole number"),
        ({"seed": float("inf")}, "whole number"),
        ({"steps": 0}, "steps=0 is not allowed: 1 to 1000"),
        ({"guidance": float("nan")}, "guidance=nan is not allowed"),
        ({"guidance": False}, "it must be a number"),
        ({"width": 64}, "width and height go together"),
        ({"width": 64, "height": 9000}, "height=9000 is not allowed: 1 to 8192"),
        ({"size": "64", "width": 64, "height": 64}, "size and width/height are both given"),
        ({"size": "big"}, "size 'big' is not a size"),
        ({"size": 64}, "size is 64: write"),
        ({"id": "../x"}, "id is '../x': 1 to 64 letters, digits, - and _"),
        ({"id": "a.b"}, "letters, digits"),
        ({"id": "-rf"}, "letters, digits"),
        ({"id": "x" * 65}, "letters, digits"),
        ({"id": "CON"}, "no file can have this name"),
        ({"plugins": "ezcache"}, "plugins: unknown plugin 'ezcache'"),
        ({"plugins": "easycache:treshold=1"}, "did you mean 'threshold'?"),
        ({"plugins": "easycache:threshold=-3"}, "threshold=-3 is not allowed"),
        ({"plugins": 7}, "7 is no plugin"),
        ({"plugins": "/etc/passwd"}, "unknown plugin"),
    ],
)
def test_a_bad_row_is_refused_in_words(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=re.escape(message)):
        read(**fields)


def test_a_row_without_a_prompt_is_refused() -> None:
    with pytest.raises(RowError, match="no prompt: a row needs at least"):
        read_row(1, {"seed": 3}, DEFAULTS)


def test_plugins_are_noted_the_same_however_they_are_written() -> None:
    ways: list[Any] = [
        "easycache:threshold=0.08",
        ["easycache:threshold=0.08"],
        [{"name": "easycache", "options": {"threshold": 0.08}}],
    ]
    assert len({read(plugins=way).plugins for way in ways}) == 1
    assert read(plugins=[]).plugins == read(plugins="").plugins == "[]"


def test_recipes_are_read_once() -> None:
    known: dict[str, str] = {}
    for line in range(3):
        read_row(line, {"prompt": "x", "plugins": "fora:interval=2"}, DEFAULTS, known)
    assert list(known) == ['"fora:interval=2"']


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)) | st.text(max_size=8), json_values))
def test_any_row_is_read_or_refused_and_its_id_is_a_safe_file_name(fields: dict[str, Any]) -> None:
    try:
        row = read_row(1, fields, DEFAULTS)
    except RowError as error:
        assert str(error).isprintable()
    else:
        assert set(row.id) <= set(string.ascii_letters + string.digits + "-_")
        assert 0 <= row.seed <= LARGEST_SEED and row.prompt.strip()


def test_every_row_of_the_example_can_be_used() -> None:
    path = Path(__file__).parents[3] / "examples" / "prompts.jsonl"
    rows = [
        read_row(line, found, DEFAULTS)
        for line, found in read_file(path)
        if not isinstance(found, RowError)
    ]
    assert len(rows) == len({row.id for row in rows}) == 8
    assert len({row.group for row in rows}) > 4
