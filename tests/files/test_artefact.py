"""Artefact files: what a stranger may put into one, and that each fault is named."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from skipstep.caching.gates.magcache import MagCacheGate, MagnitudeRatios
from skipstep.caching.gates.schedule import Schedule, ScheduleGate
from skipstep.files.artefact import LIMIT_BYTES, differences

GOOD_SCHEDULE: dict[str, Any] = {
    "version": 1,
    "kind": "skipstep-schedule",
    "steps": 6,
    "compute": [0, 1, 4],
    "fingerprint": {"scheduler": "Euler", "size": [64, 64]},
}
GOOD_RATIOS: dict[str, Any] = {
    "version": 1,
    "kind": "skipstep-magnitude-ratios",
    "ratios": [1, 1.2, 0.9],
    "samples": 4,
}


def write(folder: Path, content: Any) -> Path:
    path = folder / "file.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    schedule = Schedule(steps=6, compute=(0, 1, 4), fingerprint={"size": [64, 64]})
    schedule.save(tmp_path / "s.json")
    assert Schedule.load(tmp_path / "s.json") == schedule
    ratios = MagnitudeRatios(ratios=(1.0, 1.25), samples=3, fingerprint={"model": "a"})
    ratios.save(tmp_path / "r.json")
    assert MagnitudeRatios.load(str(tmp_path / "r.json")) == ratios
    assert json.loads((tmp_path / "s.json").read_text())["kind"] == "skipstep-schedule"


def test_a_gate_takes_a_path_a_dict_or_the_object(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD_SCHEDULE)
    given: list[Any] = [path, str(path), GOOD_SCHEDULE, Schedule.load(path)]
    gates = [ScheduleGate(schedule=schedule) for schedule in given]
    assert all(gate == gates[0] for gate in gates)
    assert gates[0].schedule.compute == (0, 1, 4)
    ratios: Any = str(write(tmp_path, GOOD_RATIOS))
    assert MagCacheGate(ratios=ratios).ratios.ratios == (1.0, 1.2, 0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "'version' must be 1"),
        ({"version": True}, "'version' must be 1"),
        ({"version": "1"}, "'version' must be 1"),
        ({"kind": "skipstep-magnitude-ratios"}, "'kind' must be 'skipstep-schedule'"),
        ({"kind": None}, "'kind' must be"),
        ({"steps": 0}, "steps: .*greater than or equal to 1"),
        ({"steps": 10**9}, "steps: .*less than or equal to 10000"),
        ({"steps": True}, "steps: .*valid integer"),
        ({"steps": 6.0}, "steps: .*valid integer"),
        ({"steps": "6"}, "steps: .*valid integer"),
        ({"compute": []}, "compute: .*at least 1"),
        ({"compute": [0] * 10_001}, "compute: .*at most 10000"),
        ({"compute": "0"}, "compute: .*valid tuple"),
        ({"compute": {"0": 1}}, "compute: .*valid tuple"),
        ({"compute": [0, -1]}, "compute.1: .*greater than or equal to 0"),
        ({"compute": [0, 1.0]}, "compute.1: .*valid integer"),
        ({"compute": [False, 1]}, "compute.0: .*valid integer"),
        ({"compute": [0, None]}, "compute.1: .*valid integer"),
        ({"compute": [0, [1]]}, "compute.1: .*valid integer"),
        ({"compute": [1, 2]}, "must begin with step 0"),
        ({"compute": [0, 2, 2]}, "must ascend, with no step twice"),
        ({"compute": [0, 3, 1]}, "must ascend, with no step twice"),
        ({"compute": [0, 6]}, "goes up to step 6, but 6 steps end at 5"),
        ({"fingerprint": [1]}, "fingerprint: .*valid dictionary"),
        ({"fingerprint": {str(i): i for i in range(65)}}, "fingerprint: .*at most 64"),
        ({"extra": 1}, "extra: Unexpected keyword"),
    ],
)
def test_a_schedule_with_a_fault_is_refused_with_its_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = write(tmp_path, GOOD_SCHEDULE | change)
    with pytest.raises(ValueError, match=f"(?s)file.json: .*{message}"):
        Schedule.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ratios": []}, "ratios: .*at least 1"),
        ({"ratios": [1, 0]}, "ratios.1: .*greater than 0"),
        ({"ratios": [1, -2]}, "ratios.1: .*greater than 0"),
        ({"ratios": [1, 1e4]}, "ratios.1: .*less than or equal to 1000"),
        ({"ratios": [1, True]}, "ratios.1: .*valid number"),
        ({"ratios": [1, "1"]}, "ratios.1: .*valid number"),
        ({"ratios": [1.5, 1]}, "must begin with 1"),
        ({"samples": 0}, "samples: .*greater than or equal to 1"),
        ({"threshold": 1}, "threshold: Unexpected keyword"),
    ],
)
def test_ratios_with_a_fault_are_refused_with_its_name(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"(?s)file.json: .*{message}"):
        MagnitudeRatios.load(write(tmp_path, GOOD_RATIOS | change))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[1]", "must hold one JSON object"),
        ("3", "must hold one JSON object"),
        ('{"kind": NaN}', "NaN is not a number"),
        ('{"kind": -Infinity}', "-Infinity is not a number"),
        ('{"kind": 1e999}', "too large"),
        ('{"kind": 1, "kind": 2}', "a key is given twice"),
        ('{"kind": ' + "9" * 5000 + "}", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("{}" + " " * LIMIT_BYTES, "larger than"),
    ],
    ids=range(12),
)
def test_text_that_is_no_artefact_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"file.json: .*{message}"):
        Schedule.load(write(tmp_path, text))


def test_deep_nesting_below_the_parsers_limit_is_refused_too(tmp_path: Path) -> None:
    deep: Any = 1
    for _ in range(600):
        deep = [deep]
    with pytest.raises(ValueError, match="file.json: "):
        Schedule.load(write(tmp_path, GOOD_SCHEDULE | {"fingerprint": {"a": deep}}))


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b"\x80\x04\x95pickle")
    with pytest.raises(ValueError, match="not UTF-8"):
        Schedule.load(path)


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "missing.json", tmp_path / "pipe"):
        with pytest.raises(ValueError, match="no such file"):
            Schedule.load(path)


def test_messages_never_quote_the_content(tmp_path: Path) -> None:
    secret = "s3cret-token"
    for content in ({"kind": secret}, GOOD_SCHEDULE | {"steps": secret}, f'{{"{secret}'):
        with pytest.raises(ValueError) as caught:
            ScheduleGate(schedule=Schedule.load(write(tmp_path, content)))
        assert secret not in str(caught.value)


def test_many_faults_are_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD_SCHEDULE | {"compute": [-1] * 500})
    with pytest.raises(ValueError, match=r"\(and \d+ more\)$") as caught:
        Schedule.load(path)
    assert str(caught.value).count("compute.") == 3


def test_infinite_fingerprints_are_not_written(tmp_path: Path) -> None:
    schedule = Schedule(steps=2, compute=(0,), fingerprint={"x": float("inf")})
    with pytest.raises(ValueError):
        schedule.save(tmp_path / "s.json")
    assert not (tmp_path / "s.json").exists()


def test_differences_name_each_key_that_is_not_shared() -> None:
    made = {"model": "a", "steps": 20, "size": [64, 64]}
    assert differences(made, made | {"torch": "2"}) == []
    assert differences(made, {"model": "b", "steps": 20}) == [
        "model: made for 'a', running 'b'",
        "size: made for [64, 64], running None",
    ]
