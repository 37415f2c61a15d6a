"""What an arm is called makes the same plugin again."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstep.caching.abcache import ABCache
from skipstep.pipelines.compare.arms import spec, written
from skipstep.plugins import options
from skipstep.plugins.options import build, parse_spec

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-99, 99)
    | st.floats(-9, 9).map(lambda x: round(x, 3))
    | st.text("ab1:,[{ }=null'\"", max_size=6),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("xy"), inner, max_size=2),
    max_leaves=4,
)


@given(VALUES)
def test_a_value_is_read_back_as_it_was_written(value: Any) -> None:
    assert parse_spec(f"toy:option={written(value)},other=1")[1] == {"option": value, "other": 1}


@pytest.mark.parametrize(
    "plugin",
    [
        ABCache(interval=4, max_noise_gain=None),
        build("cache", {"max_skips": None, "forecaster": {"type": "lagrange", "order": 2}}),
        build("easycache", {"threshold": 0.08}),
    ],
)
def test_an_arms_name_makes_its_plugin(plugin: Any) -> None:
    assert build(*parse_spec(spec(plugin))) == plugin
    assert "None" not in spec(plugin) and options.to_dict(plugin)["name"] in spec(plugin)
