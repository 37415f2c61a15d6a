"""Files of prompts: each kind gives the same rows, and a bad row does not stop the reading."""

import sys
from pathlib import Path
from typing import Any

import pytest

from skipstep.pipelines.batch.files import LONGEST_LINE, read_file
from skipstep.pipelines.batch.rows import RowError
from skipstep.plugins.errors import PluginError


def read(path: Path, content: str | bytes) -> list[tuple[int, Any]]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(line, str(row) if isinstance(row, RowError) else row) for line, row in read_file(path)]


def test_jsonl_lines_are_rows_and_blank_lines_count(tmp_path: Path) -> None:
    content = '\ufeff{"prompt": "a"}\r\n\n{"prompt": "ü", "seed": 3}'
    assert read(tmp_path / "p.jsonl", content) == [
        (1, {"prompt": "a"}),
        (3, {"prompt": "ü", "seed": 3}),
    ]


def test_a_torn_last_line_is_one_bad_row(tmp_path: Path) -> None:
    first, second = read(tmp_path / "p.jsonl", '{"prompt": "a"}\n{"prompt": "b')
    assert first == (1, {"prompt": "a"})
    assert second[0] == 2 and second[1].startswith("not JSON: Unterminated string")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "a", "prompt": "b"}', "'prompt' is there twice"),
        ('{"guidance": NaN}', "NaN is no number"),
        ('["a"]', "is no row"),
        ("[" * 5000, "not JSON that we read"),
        ("1" * 5000, "not JSON that we read"),
        ("a cat", "not JSON: "),
        ('{"prompt": "' + "x" * LONGEST_LINE + '"}', f"longer than {LONGEST_LINE} bytes"),
    ],
)
def test_a_bad_json_line_is_told_and_the_next_one_read(
    tmp_path: Path, line: str, message: str
) -> None:
    (_, told), after = read(tmp_path / "p.jsonl", f'{line}\n{{"prompt": "next"}}\n')
    assert message in told and after == (2, {"prompt": "next"})


def test_bytes_that_are_no_text_are_one_bad_row(tmp_path: Path) -> None:
    (_, told), after = read(tmp_path / "p.txt", b"caf\xe9\nnext\n")
    assert told.startswith("not UTF-8 at byte 4") and after == (2, {"prompt": "next"})


def test_csv_cells_are_numbers_where_the_field_is_one(tmp_path: Path) -> None:
    content = 'prompt,seed,guidance,plugins\n"a, ""b""\nc",7,,fora:interval=2\n\nd,x,2.5,\n'
    assert read(tmp_path / "p.csv", content) == [
        (2, {"prompt": 'a, "b"\nc', "seed": 7, "plugins": "fora:interval=2"}),
        (5, {"prompt": "d", "seed": "x", "guidance": 2.5}),
    ]


def test_a_csv_row_with_another_number_of_cells_is_one_bad_row(tmp_path: Path) -> None:
    assert read(tmp_path / "p.csv", "prompt,seed\na,1,2\nb,1\n") == [
        (2, "3 cells under a header of 2"),
        (3, {"prompt": "b", "seed": 1}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("promt\na\n", "unknown column 'promt', did you mean 'prompt'?"),
        ("prompt,prompt\na,b\n", "column 'prompt' is there twice"),
        ("seed\n1\n", "no column named prompt"),
        ("", "no column named prompt"),
    ],
)
def test_a_header_that_makes_every_row_bad_is_refused_at_once(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(PluginError, match=message):
        read(tmp_path / "p.csv", content)


def test_plain_lines_are_prompts(tmp_path: Path) -> None:
    assert read(tmp_path / "p.txt", "a cat\n\n# a dog\n") == [
        (1, {"prompt": "a cat"}),
        (3, {"prompt": "# a dog"}),
    ]


def test_an_unknown_ending_and_a_missing_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(
        PluginError, match=r"the ending '.json' is not known: give a file of .jsonl"
    ):
        read_file(tmp_path / "p.json")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_file(tmp_path / "p.jsonl")


def test_parquet_rows_are_read_like_the_others(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"prompt": ["a", "b"], "seed": [1, None]})
    parquet.write_table(table, tmp_path / "p.parquet")
    assert list(read_file(tmp_path / "p.parquet")) == [
        (1, {"prompt": "a", "seed": 1}),
        (2, {"prompt": "b", "seed": None}),
    ]
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    with pytest.raises(PluginError, match="not readable as Parquet"):
        list(read_file(tmp_path / "torn.parquet"))


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "p.parquet").touch()
    with pytest.raises(PluginError, match=r'pip install "skipstep\[parquet\]"'):
        list(read_file(tmp_path / "p.parquet"))
