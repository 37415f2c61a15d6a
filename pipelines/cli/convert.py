"""Read a cache-dit configuration (YAML) and say the same as a recipe of ours, or why not.

    cache_config:                    plugins:
      Fn_compute_blocks: 1           - name: fbcache
      max_warmup_steps: 4       ->     options:
      residual_diff_threshold: 0.12      warmup_steps: 4
                                         final_steps: 0
                                         threshold: 0.12

cache-dit ignores keys that it does not know, and its defaults are not ours; here an unknown key is
refused, their defaults are written out, and what has no counterpart is listed, never dropped in
silence. The form of the file was read from cache-dit 1.5.3's documentation of `load_configs`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skipstep.plugins.errors import PluginError
from skipstep.plugins.options import build, show
from skipstep.plugins.plugin import Plugin
from skipstep.plugins.recipe import read_yaml
from skipstep.plugins.spelling import did_you_mean

__all__ = ["Converted", "convert"]


@dataclass(frozen=True)
class Converted:
    """The plugins that do the same, and one sentence for each option that they do not carry."""

    plugins: list[Plugin]
    left_out: list[str]


@dataclass(frozen=True)
class Key:
    """A key of `cache_config`: its type, cache-dit's default, and why we have no counterpart.

    An empty `why_not` means that the table of targets below carries it.
    """

    kind: type
    default: Any
    why_not: str = ""


GUIDANCE = "not needed: guidance branches are told apart by counting calls"
ENCODER = "not needed: every stream of the block stack is forecast alike"
REFRESH = "a fresh start within a run has no counterpart"
NO_DMD = "dynamic mode decomposition is not a forecaster of this recipe, `reuse` stands in"
PRUNING = "pruning single blocks has no counterpart"

KEYS: dict[str, Key] = {
    "cache_type": Key(str, "DBCache"),
    "Fn_compute_blocks": Key(int, 8),
    "Bn_compute_blocks": Key(int, 0),
    "residual_diff_threshold": Key(float, 0.08),
    "max_warmup_steps": Key(int, 8),
    "max_continuous_cached_steps": Key(int, -1),
    "num_inference_steps": Key(int, None),
    "steps_computation_mask": Key(list, None),
    "steps_computation_policy": Key(str, "dynamic"),
    "enable_taylorseer": Key(bool, False),
    "taylorseer_order": Key(int, 1),
    "warmup_interval": Key(int, 1, "all warm-up steps are computed"),
    "max_cached_steps": Key(int, -1, "skips are limited in a row (max_skips), not in total"),
    "max_accumulated_residual_diff_threshold": Key(float, None, "no limit on a sum of changes"),
    "enable_separate_cfg": Key(bool, None, GUIDANCE),
    "cfg_compute_first": Key(bool, False, GUIDANCE),
    "cfg_diff_compute_separate": Key(bool, True, GUIDANCE),
    "force_refresh_step_hint": Key(int, None, REFRESH),
    "force_refresh_step_policy": Key(str, "once", REFRESH),
    "enable_encoder_taylorseer": Key(bool, False, ENCODER),
    "taylorseer_cache_type": Key(str, "residual", "the residual is what is forecast"),
    "calibrator_cache_type": Key(str, "residual", "the residual is what is forecast"),
    "enable_foca": Key(bool, False, "FoCa is not a forecaster of this recipe, `reuse` stands in"),
    "enable_encoder_foca": Key(bool, False, ENCODER),
    "enable_dmd": Key(bool, False, NO_DMD),
    "enable_encoder_dmd": Key(bool, False, ENCODER),
    "dmd_history": Key(int, 6, NO_DMD),
    "dmd_rank": Key(int, 0, NO_DMD),
    "dmd_ridge": Key(float, 1e-8, NO_DMD),
    "dmd_svd_precision": Key(str, "medium", NO_DMD),
    "enable_dynamic_prune_threshold": Key(bool, False, PRUNING),
    "max_dynamic_prune_threshold": Key(float, None, PRUNING),
    "dynamic_prune_threshold_relax_ratio": Key(float, 1.25, PRUNING),
    "non_prune_block_ids": Key(list, [], PRUNING),
    "force_reduce_calibrator_vram": Key(bool, False, PRUNING),
}
SECTIONS = {
    "parallelism_config": "parallelism is set up with diffusers, caches follow it",
    "attention_backend": "attention backends are set with diffusers (set_attention_backend)",
    "quantize_config": "quantisation is set up with diffusers, before caches",
}
LARGEST_THRESHOLD = 10.0


@dataclass(frozen=True)
class Target:
    """One row of the mapping: when it applies, and the recipe's plugin for the settings."""

    applies: Callable[[Mapping[str, Any]], bool]
    plugin: Callable[[Mapping[str, Any]], tuple[str, dict[str, Any]]]
    carries: frozenset[str]


def common(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that every target has."""
    longest = given["max_continuous_cached_steps"]
    return {
        "warmup_steps": max(1, given["max_warmup_steps"]),
        "final_steps": 0,
        "max_skips": longest if longest > 0 else None,
    }


def forecaster(given: Mapping[str, Any]) -> Any:
    """Return the forecaster: TaylorSeer's, or none."""
    if given["enable_taylorseer"]:
        return {"type": "taylor", "order": given["taylorseer_order"]}
    return "reuse"


def threshold(given: Mapping[str, Any]) -> float:
    """Return the threshold of the gate; below 0 theirs never skips, as ours at 0."""
    return min(LARGEST_THRESHOLD, max(0.0, float(given["residual_diff_threshold"])))


def first_block_cache(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return fbcache."""
    return "fbcache", {**common(given), "threshold": threshold(given)}


def first_block_product(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the first-block gate with a forecaster."""
    gate = {"type": "first_block", "threshold": threshold(given)}
    return "cache", {**common(given), "gate": gate, "forecaster": forecaster(given)}


def schedule_product(given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return a schedule with a forecaster: their static mask looks at nothing else."""
    mask = given["steps_computation_mask"]
    compute = [step for step, is_computed in enumerate(mask) if is_computed]
    gate = {"type": "schedule", "schedule": {"steps": len(mask), "compute": compute}}
    options = {"warmup_steps": 1, "final_steps": 0, "max_skips": None}
    return "cache", {**options, "gate": gate, "forecaster": forecaster(given)}


ALWAYS = {"cache_type", "enable_taylorseer", "taylorseer_order"}
GATED = ALWAYS | {"residual_diff_threshold", "max_warmup_steps", "max_continuous_cached_steps"}
MASK = {"steps_computation_mask", "steps_computation_policy", "num_inference_steps"}

# The first row that applies is taken; a preset with front and back blocks is one more row on top.
TARGETS = (
    Target(
        lambda given: is_static(given),
        schedule_product,
        frozenset(ALWAYS | MASK),
    ),
    Target(lambda given: not given["enable_taylorseer"], first_block_cache, frozenset(GATED)),
    Target(lambda given: True, first_block_product, frozenset(GATED)),
)
# What a target does not carry and yet is nothing to tell: the value that its plugin stands for.
STANDS_FOR = {"Fn_compute_blocks": 1, "Bn_compute_blocks": 0}
WHY_NOT = {
    "Fn_compute_blocks": "the gate looks at 1 front block",
    "Bn_compute_blocks": "no back blocks are computed on a skip",
    "residual_diff_threshold": "a static mask of steps looks at no change",
    "max_warmup_steps": "a static mask of steps says itself which are computed",
    "max_continuous_cached_steps": "a static mask of steps says itself which are computed",
    "steps_computation_mask": "a mask of steps that may be cached needs the policy static",
    "steps_computation_policy": "it has a meaning only beside a mask",
    "num_inference_steps": "the number of steps is the pipeline's",
}


def is_static(given: Mapping[str, Any]) -> bool:
    """Say whether the steps are computed by a mask alone."""
    return (
        given["steps_computation_mask"] is not None
        and given["steps_computation_policy"] == "static"
    )


def convert(path: str | Path) -> Converted:
    """Read a cache-dit configuration file.

    Raises:
        FileNotFoundError: if there is no such file.
        PluginError: if it is no such configuration, or has a key or value that cache-dit has not.
    """
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise PluginError(
            f"{path}: a cache-dit configuration is a mapping, it is {show(content)}: "
            "write cache_config: with its options below"
        )
    sections = {str(key): value for key, value in content.items()}
    # Their older form has the options of `cache_config` at the top.
    is_flat = "cache_config" not in sections and any(key in KEYS for key in sections)
    inside = {key: value for key, value in sections.items() if key not in SECTIONS}
    outside = {key: value for key, value in sections.items() if key in SECTIONS}
    if not is_flat:
        refuse_unknown(path, inside, ["cache_config", *SECTIONS])
        inside = inside.get("cache_config", {}) or {}
    if not isinstance(inside, Mapping):
        raise PluginError(f"{path}: cache_config is options with values, it is {show(inside)}")
    inside = {str(key): value for key, value in inside.items()}
    refuse_unknown(path, inside, [*KEYS, *(SECTIONS if is_flat else ())])
    if not inside:
        raise PluginError(f"{path}: there is no cache_config in it, so there is nothing to convert")
    for key, value in inside.items():
        check(path, key, value)
    given = {key: inside.get(key, known.default) for key, known in KEYS.items()}
    check_together(path, given)
    target = next(target for target in TARGETS if target.applies(given))
    try:
        plugin = build(*target.plugin(given))
    except PluginError as error:
        raise PluginError(f"{path}: {error}") from None
    told = [f"{key}: {reason}" for key, reason in SECTIONS.items() if key in outside]
    return Converted([plugin], [*left_out(given, inside, target), *told])


def refuse_unknown(path: str | Path, given: Mapping[str, Any], known: list[str]) -> None:
    """Refuse a key that cache-dit does not have."""
    for key in given:
        if key not in known:
            hint = did_you_mean(key, known)
            raise PluginError(f"{path}: unknown key {show(key)}{hint} Keys: {', '.join(known)}")


def check(path: str | Path, key: str, value: Any) -> None:
    """Refuse a value of another type than cache-dit's."""
    known = KEYS[key]
    if value is None and known.default is None:
        return
    kinds = (int, float) if known.kind is float else (known.kind,)
    if isinstance(value, str) and key == "steps_computation_mask":
        raise PluginError(
            f"{path}: {key}: {show(value)} is a name of theirs for a mask: write the mask itself, "
            "a list of 0 and 1 with one entry a step (cache_dit.steps_mask prints it)"
        )
    is_right = isinstance(value, kinds) and isinstance(value, bool) == (known.kind is bool)
    if not is_right:
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
        raise PluginError(
            f"{path}: {key}={show(value)} is not allowed: it is {wanted.get(known.kind, 'a list')}"
        )


def check_together(path: str | Path, given: Mapping[str, Any]) -> None:
    """Refuse what no recipe can stand for."""
    if given["cache_type"] != "DBCache":
        raise PluginError(
            f"{path}: cache_type={show(given['cache_type'])} has no counterpart: DBCache can be "
            "converted"
        )
    chosen = [n for n in ("enable_taylorseer", "enable_dmd", "enable_foca") if given[n]]
    if len(chosen) > 1:
        raise PluginError(f"{path}: {' and '.join(chosen)} exclude each other: keep one")
    if given["steps_computation_policy"] not in ("static", "dynamic"):
        policy = show(given["steps_computation_policy"])
        raise PluginError(f"{path}: steps_computation_policy={policy}: it is static or dynamic")
    mask = given["steps_computation_mask"]
    if mask is not None and not (mask and all(type(each) is int for each in mask)):
        raise PluginError(f"{path}: steps_computation_mask is a list of 0 and 1, one entry a step")


def left_out(given: Mapping[str, Any], inside: Mapping[str, Any], target: Target) -> list[str]:
    """Return a sentence for every option that the target does not carry.

    An option that is not in the file is told where cache-dit's default differs from what we do.
    """
    told = []
    for key, value in given.items():
        if key in target.carries or STANDS_FOR.get(key, object()) == value:
            continue
        if key not in inside and key not in STANDS_FOR:
            continue
        origin = "" if key in inside else " (cache-dit's default)"
        reason = KEYS[key].why_not or WHY_NOT[key]
        effect = ", and it changes nothing at this value" if value == KEYS[key].default else ""
        told.append(f"{key}={show(value)}{origin}: {reason}{effect if key in inside else ''}")
    if "residual_diff_threshold" in target.carries and given["residual_diff_threshold"] >= 1:
        told.append(
            f"residual_diff_threshold={show(given['residual_diff_threshold'])}: from 1 on "
            "cache-dit skips whatever the change is, ours compares still"
        )
    return told
