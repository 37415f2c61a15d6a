"""Reading artefact files: whatever the bytes are, a file is read or refused with its name."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skipstep.caching.gates.schedule import Schedule

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


def test_a_file_above_the_size_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    with path.open("wb") as file:
        file.truncate(50 * 2**20)
    with pytest.raises(ValueError, match="larger than"):
        Schedule.load(path)
