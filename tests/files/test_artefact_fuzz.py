"""Reading artefact files: whatever the bytes are, a file is read or refused with its name."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skipstep.caching.gates.schedule import Schedule
from skipstep.caching.spans.planned import ModulePlan

PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
ANY_JSON = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def read(raw: bytes) -> Schedule | None:
    """Read bytes as a schedule file; None when it was refused in words that begin with its path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.json")
        path.write_bytes(raw)
        try:
            return Schedule.load(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and len(str(error)) < 2000
            return None


@given(raw=st.binary(max_size=300))
@example(raw=b"\xef\xbb\xbf{}")
@example(raw=b'{"kind": "\\ud800"}')
@example(raw=b"-" * 5000)
def test_bytes_are_refused_and_never_crash(raw: bytes) -> None:
    assert read(raw) is None


@settings(max_examples=30)
@given(content=ANY_JSON)
def test_json_of_any_form_is_refused(content: Any) -> None:
    assert read(json.dumps(content).encode()) is None


@settings(max_examples=50)
@given(
    steps=ANY_JSON | st.integers(1, 30),
    compute=ANY_JSON | st.lists(st.integers(-1, 30), max_size=8),
    prints=ANY_JSON | st.dictionaries(st.text(max_size=8), ANY_JSON, max_size=3),
)
def test_what_is_read_is_a_schedule_and_survives_saving(
    steps: Any, compute: Any, prints: Any
) -> None:
    content = {
        "version": 1,
        "kind": "skipstep-schedule",
        "steps": steps,
        "compute": compute,
        "fingerprint": prints,
    }
    found = read(json.dumps(content).encode())
    if found is None:
        return
    assert list(found.compute) == sorted(set(compute)) and found.compute[0] == 0
    assert found.compute[-1] < found.steps == steps
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder, "s.json"))
        assert Schedule.load(Path(folder, "s.json")) == found


@given(cut=st.integers(0, 140), data=st.data())
def test_a_damaged_file_is_refused_or_still_a_schedule(cut: int, data: Any) -> None:
    whole = bytearray(
        json.dumps(
            {"version": 1, "kind": "skipstep-schedule", "steps": 9, "compute": [0, 3, 5]}
        ).encode()
    )
    position = data.draw(st.integers(0, len(whole) - 1))
    whole[position] = data.draw(st.integers(0, 255))
    found = read(bytes(whole[:cut] if cut < len(whole) else whole))
    assert found is None or (found.compute[0] == 0 and found.compute[-1] < found.steps)


def read_plan(raw: bytes) -> ModulePlan | None:
    """Read bytes as a plan's file; None when it was refused in words that begin with its path."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p.json")
        path.write_bytes(raw)
        try:
            return ModulePlan.load(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and len(str(error)) < 2000
            return None


BITS = st.text("01", max_size=3)


@settings(max_examples=50, deadline=None)
@given(
    components=ANY_JSON | st.lists(st.sampled_from(("attention", "feed_forward", "x")), max_size=3),
    compute=ANY_JSON | st.lists(st.lists(BITS | PLAIN, max_size=2), max_size=4),
)
@example(components=["attention"], compute=[["1"], ["0"]])
@example(components=["attention"], compute=[["\u0661"], ["\u0660"]])
@example(components=["attention"], compute=[["1\n"]])
@example(components=["attention"], compute=[["1" * 1001]])
@example(components=["attention"], compute=[[1], [0]])
def test_a_plan_that_is_read_is_a_box_of_digits_and_survives_saving(
    components: Any, compute: Any
) -> None:
    content = {
        "version": 1,
        "kind": "skipstep-module-plan",
        "components": components,
        "compute": compute,
    }
    found = read_plan(json.dumps(content).encode())
    if found is None:
        return
    assert [list(row) for row in found.compute] == compute
    assert {(len(row), *map(len, row)) for row in compute} == {
        (len(components), *[found.blocks] * len(components))
    }
    assert set("".join(bits for row in compute for bits in row)) <= set("01")
    assert "0" not in "".join(compute[0])
    with tempfile.TemporaryDirectory() as folder:
        found.save(Path(folder, "p.json"))
        assert ModulePlan.load(Path(folder, "p.json")) == found


@given(position=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_damaged_plan_is_refused_or_still_a_plan(position: int, byte: int) -> None:
    plan = {"components": ["attention"], "compute": [["11"], ["10"]]}
    whole = bytearray(json.dumps({"version": 1, "kind": "skipstep-module-plan", **plan}).encode())
    whole[position % len(whole)] = byte
    found = read_plan(bytes(whole))
    assert found is None or (found.steps, found.blocks) == (2, 2)


@pytest.mark.parametrize("kind", ["skipstep-schedule", None])
def test_a_file_of_another_sort_is_no_plan(kind: str | None, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({"version": 1, "kind": kind, "steps": 2, "compute": [0]}))
    with pytest.raises(ValueError, match="'kind' must be 'skipstep-module-plan'"):
        ModulePlan.load(path)


def test_a_file_above_the_size_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with path.open("wb") as file:
        file.truncate(50 * 2**20)
    with pytest.raises(ValueError, match="larger than"):
        Schedule.load(path)
