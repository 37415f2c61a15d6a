"""`skipstep convert`: the same cache as a recipe, nothing dropped in silence, hostile files."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from skipstep.caching.fbcache import FBCache
from skipstep.caching.forecasters.taylor import Taylor
from skipstep.caching.gates.first_block import FirstBlockGate
from skipstep.caching.gates.schedule import ScheduleGate
from skipstep.caching.product import Cache
from skipstep.pipelines.cli import main
from skipstep.pipelines.cli.convert import KEYS, TARGETS, WHY_NOT, convert
from skipstep.plugins import recipe
from skipstep.plugins.errors import PluginError

FIRST_BLOCK = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0}


def written(folder: Path, content: Any) -> Path:
    """Write a configuration, given as data or as text."""
    path = folder / "cache.yaml"
    text = content if isinstance(content, str) else yaml.safe_dump(content)
    path.write_text(text, encoding="utf-8")
    return path


def test_one_front_block_becomes_fbcache_with_their_defaults_written_out(tmp_path: Path) -> None:
    found = convert(written(tmp_path, {"cache_config": FIRST_BLOCK}))
    assert found.plugins == [FBCache(warmup_steps=8, final_steps=0, threshold=0.08)]
    assert found.left_out == []


def test_the_older_flat_form_says_the_same(tmp_path: Path) -> None:
    options = {**FIRST_BLOCK, "residual_diff_threshold": 0.24, "max_continuous_cached_steps": 3}
    nested = convert(written(tmp_path, {"cache_config": options}))
    assert convert(written(tmp_path, options)) == nested
    assert nested.plugins == [FBCache(warmup_steps=8, final_steps=0, max_skips=3, threshold=0.24)]


def test_taylorseer_becomes_a_first_block_gate_with_a_taylor_forecaster(tmp_path: Path) -> None:
    options = {**FIRST_BLOCK, "enable_taylorseer": True, "taylorseer_order": 2}
    (plugin,) = convert(written(tmp_path, {"cache_config": options})).plugins
    assert isinstance(plugin, Cache)
    assert plugin.gate == FirstBlockGate(threshold=0.08)
    assert plugin.forecaster == Taylor(order=2)
    assert (plugin.warmup_steps, plugin.final_steps, plugin.max_skips) == (8, 0, None)


def test_a_static_mask_becomes_a_schedule_and_says_which_options_lose_their_meaning(
    tmp_path: Path,
) -> None:
    options = {
        **FIRST_BLOCK,
        "max_warmup_steps": 2,
        "num_inference_steps": 5,
        "steps_computation_mask": [1, 1, 0, 0, 1],
        "steps_computation_policy": "static",
    }
    found = convert(written(tmp_path, {"cache_config": options}))
    (plugin,) = found.plugins
    assert isinstance(plugin, Cache)
    assert isinstance(plugin.gate, ScheduleGate)
    assert plugin.gate.schedule.compute == (0, 1, 4)
    assert len(found.left_out) == 1 and found.left_out[0].startswith("max_warmup_steps=2: ")


def test_back_and_more_front_blocks_are_told_also_when_they_are_only_their_default(
    tmp_path: Path,
) -> None:
    found = convert(written(tmp_path, {"cache_config": {"Bn_compute_blocks": 2}}))
    assert found.left_out == [
        "Fn_compute_blocks=8 (cache-dit's default): the gate looks at 1 front block",
        "Bn_compute_blocks=2: no back blocks are computed on a skip",
    ]


@pytest.mark.parametrize("key", [key for key, known in KEYS.items() if known.why_not])
def test_every_option_without_a_counterpart_is_listed_by_name(tmp_path: Path, key: str) -> None:
    values = {int: 2, float: 0.5, bool: True, str: "low", list: [3]}
    value = values[KEYS[key].kind]
    found = convert(written(tmp_path, {"cache_config": {**FIRST_BLOCK, key: value}}))
    assert [line for line in found.left_out if line.startswith(f"{key}={value!r}: ")]


def test_every_key_is_carried_by_a_target_or_has_a_reason() -> None:
    for target in TARGETS:
        missing = set(KEYS) - target.carries - set(WHY_NOT)
        assert all(KEYS[key].why_not for key in missing)


def test_parallel_attention_and_quantise_sections_are_listed(tmp_path: Path) -> None:
    content = {
        "cache_config": FIRST_BLOCK,
        "parallelism_config": {"ulysses_size": 4},
        "attention_backend": "sage",
        "quantize_config": {"quant_type": "float8_per_row"},
    }
    told = convert(written(tmp_path, content)).left_out
    assert [line.partition(":")[0] for line in told] == [
        "parallelism_config",
        "attention_backend",
        "quantize_config",
    ]


def test_an_option_at_their_default_without_a_counterpart_is_told_to_change_nothing(
    tmp_path: Path,
) -> None:
    found = convert(written(tmp_path, {"cache_config": {**FIRST_BLOCK, "warmup_interval": 1}}))
    assert found.left_out == [
        "warmup_interval=1: all warm-up steps are computed, and it changes nothing at this value"
    ]


def test_a_threshold_of_one_is_told_to_mean_always_there(tmp_path: Path) -> None:
    options = {**FIRST_BLOCK, "residual_diff_threshold": 1.0}
    (told,) = convert(written(tmp_path, {"cache_config": options})).left_out
    assert "cache-dit skips whatever the change is" in told


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # This typo stands in their own documentation and is ignored there.
        ({"cache_config": {"enable_sperate_cfg": True}}, "did you mean 'enable_separate_cfg'"),
        ({"cache_config": {"residual_diff_treshold": 0.1}}, "'residual_diff_threshold'"),
        ({"cache_confg": {}}, "did you mean 'cache_config'"),
        ({"Fn_compute_blocks": 1, "quantise": 1}, "unknown key 'quantise'"),
        ({"cache_config": {"Fn_compute_blocks": "one"}}, "it is a whole number"),
        ({"cache_config": {"Fn_compute_blocks": True}}, "it is a whole number"),
        ({"cache_config": {"enable_taylorseer": 1}}, "it is true or false"),
        ({"cache_config": {"residual_diff_threshold": "high"}}, "it is a number"),
        ({"cache_config": {"taylorseer_order": 9, "enable_taylorseer": True}}, "order"),
        ({"cache_config": {"cache_type": "DBPrune"}}, "has no counterpart"),
        ({"cache_config": {"enable_dmd": True, "enable_foca": True}}, "exclude each other"),
        ({"cache_config": {"steps_computation_mask": "fast"}}, "write the mask itself"),
        ({"cache_config": {"steps_computation_mask": []}}, "one entry a step"),
        ({"cache_config": {"steps_computation_mask": [1, "x"]}}, "one entry a step"),
        (
            {
                "cache_config": {
                    "steps_computation_mask": [0, 1],
                    "steps_computation_policy": "static",
                }
            },
            "must begin with step 0",
        ),
        ({"cache_config": {"steps_computation_policy": "lazy"}}, "static or dynamic"),
        ({"cache_config": [1]}, "options with values"),
        ({"attention_backend": "sage"}, "nothing to convert"),
        ({}, "nothing to convert"),
        ("- 1\n- 2\n", "is a mapping"),
        ("", "is a mapping"),
    ],
)
def test_what_is_wrong_is_refused_with_what_to_do(
    tmp_path: Path, content: Any, message: str
) -> None:
    with pytest.raises(PluginError, match=re.escape(message)) as caught:
        convert(written(tmp_path, content))
    assert str(caught.value).startswith(str(tmp_path / "cache.yaml"))


@pytest.mark.parametrize(
    "text",
    [
        "cache_config: !!python/object/apply:os.system ['touch OWNED']",
        "cache_config: !!python/name:os.system",
        "a: &a [1]\nb: *a",
        "cache_config: {Fn_compute_blocks: 1, Fn_compute_blocks: 2}",
        "cache_config: [" + "[" * 5000,
        "{" * 3000,
        "cache_config:\n\t- tab",
        "\x00\x01",
        "cache_config: " + "x" * 1_000_001,
    ],
)
def test_hostile_files_are_refused_and_run_nothing(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PluginError):
        convert(path)
    assert [each.name for each in tmp_path.iterdir()] == ["cache.yaml"]


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_bytes(b"\xff\xfe\x00cache")
    with pytest.raises(PluginError):
        convert(path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["skipstep", *arguments])
        with pytest.raises(SystemExit) as left:
            main.main()
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def test_the_command_prints_a_recipe_and_tells_what_is_missing_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, {"cache_config": {**FIRST_BLOCK, "warmup_interval": 2}})
    code, out, err = run(capsys, "convert", str(path))
    assert code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(out, encoding="utf-8")
    assert recipe.load(printed) == convert(path).plugins
    assert err == "not carried over: warmup_interval=2: all warm-up steps are computed\n"


def test_the_command_writes_a_recipe_that_loads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {
        **FIRST_BLOCK,
        "enable_taylorseer": True,
        "steps_computation_mask": [1, 1, 1, 0],
        "steps_computation_policy": "static",
    }
    path, target = written(tmp_path, {"cache_config": options}), tmp_path / "recipe.yaml"
    code, _, _ = run(capsys, "convert", str(path), "-o", str(target))
    assert code == 0 and recipe.load(target) == convert(path).plugins


def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "convert", str(written(tmp_path, {"cache_confg": {}})))
    assert (code, out) == (2, "") and err.count("\n") == 1 and "did you mean" in err
