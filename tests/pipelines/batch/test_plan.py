"""Plans: what is made together is equal in all that matters, nothing is lost, nothing is random."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstep.pipelines.batch import plan as plans
from skipstep.pipelines.batch.plan import Plan, PlanMismatch, cut_plan, cut_shards, open_plan
from skipstep.pipelines.batch.rows import Row
from skipstep.plugins.errors import PluginError

DEFAULTS = Row(id="", line=0, prompt="", seed=0)
JOB = {"seed": 0, "plugins": "[]"}


def cut(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> Plan:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {"batch_size": 2, "shard_rows": 4, **options}
    return cut_plan(tmp_path, source, JOB, DEFAULTS, **settings)


rows_of_several_groups = st.lists(
    st.builds(
        lambda size, steps, negative: (size, steps, negative),
        st.sampled_from([None, 32, 64]),
        st.integers(1, 3),
        st.sampled_from([None, "bad"]),
    ),
    max_size=60,
)


@given(rows_of_several_groups, st.integers(1, 5), st.integers(1, 9), st.integers(1, 30))
def test_every_row_comes_once_in_a_batch_of_its_like(
    kinds: list[tuple[Any, ...]], batch_size: int, shard_rows: int, most_open: int
) -> None:
    rows = [
        Row(id=str(i), line=i, prompt="x", seed=i, width=w, height=w, steps=s, negative=n)
        for i, (w, s, n) in enumerate(kinds)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "MOST_OPEN", most_open)
        shards = list(cut_shards(iter(rows), batch_size=batch_size, shard_rows=shard_rows))
    batches = [batch for shard in shards for batch in shard]
    assert Counter(row.id for batch in batches for row in batch.rows) == Counter(
        row.id for row in rows
    )
    for batch in batches:
        assert 1 <= len(batch.rows) <= batch_size
        assert len({row.group for row in batch.rows}) == 1
    for shard in shards:
        assert sum(len(batch.rows) for batch in shard) < shard_rows + batch_size


def test_a_plan_is_read_back_as_it_was_cut_and_cutting_again_gives_the_same(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"ü {i}", "steps": 3 + i % 2, "negative": "bad" if i % 3 else None}
        for i in range(20)
    ]
    first = cut(tmp_path, rows)
    opened = open_plan(tmp_path, JOB)
    assert opened is not None and opened == first
    shards = [opened.shard(number) for number in range(len(opened.offsets))]
    found = [row for shard in shards for batch in shard for row in batch.rows]
    assert {row.line: row.prompt for row in found} == {i + 1: f"ü {i}" for i in range(20)}
    before = (tmp_path / "plan.jsonl").read_bytes()
    assert cut(tmp_path, rows).key == first.key
    assert (tmp_path / "plan.jsonl").read_bytes() == before


def test_bad_rows_are_left_out_with_their_line_and_strict_refuses_them(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "id": "x"}, {"prompt": ""}, {"prompt": "b", "id": "X"}, {"prompt": "c"}]
    plan = cut(tmp_path, rows)
    assert (plan.rows, plan.rejected) == (2, 2)
    noted = [json.loads(line) for line in (tmp_path / "rejected.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in noted] == [2, 3]
    assert "id 'X' is already that of line 1" in noted[1]["error"]
    with pytest.raises(
        PluginError, match=r"2 rows cannot be used: line 2: prompt is empty.*line 3"
    ):
        cut(tmp_path, rows, strict=True)


def test_a_file_without_a_usable_row_is_refused_and_leaves_no_plan(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match="no rows: write at least one"):
        cut(tmp_path, [])
    with pytest.raises(PluginError, match=r"7 rows cannot be used: line 1: .*; and 2 more"):
        cut(tmp_path, [{"promt": "a"}] * 7)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_a_folder_of_another_job_is_refused_with_what_differs(tmp_path: Path) -> None:
    assert open_plan(tmp_path, JOB) is None
    cut(tmp_path, [{"prompt": "a"}])
    with pytest.raises(PlanMismatch, match=r"other settings \(seed: made for 0, running 5\)"):
        open_plan(tmp_path, {**JOB, "seed": 5})


@pytest.mark.parametrize("name", ["plan.json", "plan.jsonl"])
def test_a_plan_torn_at_any_byte_is_told_and_never_taken(tmp_path: Path, name: str) -> None:
    cut(tmp_path, [{"prompt": "a"}])
    path = tmp_path / name
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(PluginError, match="the plan is damaged"):
            open_plan(tmp_path, JOB)
