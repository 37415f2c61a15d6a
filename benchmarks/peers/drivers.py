"""How each peer is switched on: a function of (pipeline, setting, steps) that returns what to call.

The pipeline is a copy that nobody else uses, of a class of its own, so what a peer patches goes
with it. A driver raises CannotRun with the reason when the peer does not serve the model.
"""

import contextlib
import functools
import io
import json
import re
from collections.abc import Callable
from typing import Any, TypeAlias

from skipstep.plugins import options

__all__ = ["CannotRun", "Call", "rhythm_mask", "shown_steps"]

Call: TypeAlias = Callable[..., Any]


class CannotRun(Exception):
    """Say in words why a peer, or one of its methods, does not run on a model."""


# cache-dit 1.5.3's masks for 28 steps, bins of computed and of cached steps in turns; ours are the
# same shares of the run.
HAND_MADE = {
    "slow": ((8, 3, 3, 2, 1, 1), (1, 2, 2, 2, 3)),
    "medium": ((6, 2, 2, 2, 2, 1), (1, 3, 3, 3, 3)),
    "fast": ((6, 1, 1, 1, 1, 1), (1, 3, 4, 5, 4)),
    "ultra": ((4, 1, 1, 1, 1), (2, 5, 6, 7)),
}


def shown_steps(name: str, steps: int) -> list[int]:
    """Return the steps of a run of `steps` that a hand-made schedule computes, in order.

    >>> shown_steps("ultra", 28)
    [0, 1, 2, 3, 6, 12, 19, 27]
    """
    computed, cached = HAND_MADE[name]
    total, at = sum(computed) + sum(cached), 0
    found: list[int] = []
    for place, count in enumerate(computed):
        found += range(at, at + count)
        at += count + (cached[place] if place < len(cached) else 0)
    return sorted({round(step * (steps - 1) / (total - 1)) for step in found})


def rhythm_mask(name: str, steps: int) -> list[int] | None:
    """Return the mask of "every3w5": 5 computed steps, then every third; None for another name.

    >>> rhythm_mask("every3w2", 9)
    [1, 1, 0, 0, 1, 0, 0, 1, 1]
    """
    match = re.fullmatch(r"every(\d+)w(\d+)", name)
    if match is None:
        return None
    interval, warmup = int(match[1]), int(match[2])
    return [
        int(i < warmup or (i - warmup + 1) % interval == 0 or i == steps - 1) for i in range(steps)
    ]


def take(given: dict[str, Any], setting: str, **defaults: Any) -> dict[str, Any]:
    """Return the options of a setting over their defaults; refuse one that there is not."""
    unknown = set(given) - set(defaults)
    if unknown:
        raise ValueError(f"{setting}: no option {', '.join(sorted(unknown))}")
    return {**defaults, **given}


def skipstep(pipe: Any, setting: str, steps: int) -> Call:
    """Switch one of our plugins on."""
    name, given = options.parse_spec(setting)
    if name == "scheduled":
        chosen = take(given, setting, steps="fast", forecaster="reuse", span="output")
        schedule = {"steps": steps, "compute": shown_steps(chosen["steps"], steps)}
        name, given = (
            "cache",
            {
                "warmup_steps": 1,
                "final_steps": 0,
                "max_skips": None,
                "gate": {"type": "schedule", "schedule": schedule},
                "forecaster": chosen["forecaster"],
                "span": chosen["span"],
            },
        )
    if name == "planned":
        chosen = take(given, setting, share=0.5, forecaster="fitted", span="output")
        pipe.enable_plugin(planned(pipe, chosen, steps))
        return lambda **call: pipe(**call)
    if name == "fitted":
        count = round(take(given, setting, share=0.5)["share"] * steps)
        pipe.enable_plugin(fitted(pipe, count, steps))
        return lambda **call: pipe(**{**call, "num_inference_steps": count})
    if name == "magcache":
        from skipstep.pipelines.tune.calibrate import calibrate_magcache

        calibrated = calibrate_magcache(pipe, [PROMPT], num_inference_steps=steps)
        given = {"ratios": calibrated.ratios, **given}
    pipe.enable_plugin(options.build(name, given))
    return lambda **call: pipe(**call)


def planned(pipe: Any, chosen: dict[str, Any], steps: int) -> Any:
    """Return a planned cache; one recording of each feature serves all shares."""
    from skipstep.pipelines.reference.prompts import load_prompts
    from skipstep.pipelines.tune.plan import instrument

    feature = "output" if chosen["span"] == "output" else "residual"
    if (steps, feature) not in RECORDED:
        prompts = [prompt["prompt"] for prompt in load_prompts()[1::32]]
        RECORDED[steps, feature] = instrument(
            pipe, prompts, steps=steps, seed=10_000, features=[feature]
        )
    count = round(chosen["share"] * steps)
    return RECORDED[steps, feature].cache(count, chosen["forecaster"], chosen["span"])


def fitted(pipe: Any, count: int, steps: int) -> Any:
    """Return a solver of `count` steps, fitted to where the pipeline ends in `steps`."""
    from skipstep.pipelines.reference.prompts import load_prompts
    from skipstep.pipelines.tune.solvers import CALIBRATED, Solvers

    if steps not in FITTED:
        prompts = [prompt["prompt"] for prompt in load_prompts()[1::64]]
        FITTED[steps] = Solvers(pipe, prompts, steps, seed=0, call={})
    return FITTED[steps].plugin(CALIBRATED, count)


FITTED: dict[int, Any] = {}
RECORDED: dict[tuple[int, str], Any] = {}
PROMPT = "a pizza, 3d style, on a blue background"


def fewer_steps(pipe: Any, setting: str, steps: int) -> Call:
    """Run the plain pipeline with a share of the steps, its own solver or another."""
    _, given = options.parse_spec(setting)
    chosen = take(given, setting, share=0.5, solver=None)
    fewer = max(1, round(steps * chosen["share"]))
    if chosen["solver"] is not None:
        pipe.enable_plugin("solver", preset=chosen["solver"])
    return lambda **call: pipe(**{**call, "num_inference_steps": fewer})


def cache_dit(pipe: Any, setting: str, steps: int) -> Call:
    """Switch cache-dit's DBCache on, with a calibrator and a mask of steps if the setting says."""
    try:
        import cache_dit as peer
    except ImportError:
        raise CannotRun('not installed: pip install "skipstep[bench]"') from None
    name, given = options.parse_spec(setting)
    if name != "dbcache":
        raise CannotRun(f"no method {name}")
    chosen = take(given, setting, F=8, B=0, W=8, I=1, R=0.08, MC=-1, calibrator="none", mask=None)
    config = peer.DBCacheConfig(
        Fn_compute_blocks=chosen["F"],
        Bn_compute_blocks=chosen["B"],
        max_warmup_steps=chosen["W"],
        warmup_interval=chosen["I"],
        residual_diff_threshold=chosen["R"],
        max_continuous_cached_steps=chosen["MC"],
        num_inference_steps=steps,
    )
    if chosen["mask"] is not None:
        mask = rhythm_mask(chosen["mask"], steps)
        if mask is None:
            mask = peer.steps_mask(total_steps=steps, mask_policy=chosen["mask"])
        config.steps_computation_mask = mask
        config.steps_computation_policy = "static"
    calibrators: dict[str, Callable[[], Any]] = {
        "none": lambda: None,
        "taylor1": lambda: peer.TaylorSeerCalibratorConfig(taylorseer_order=1),
        "taylor2": lambda: peer.TaylorSeerCalibratorConfig(taylorseer_order=2),
        "dmd": peer.DMDCalibratorConfig,
        "foca": peer.FoCaCalibratorConfig,
    }
    try:
        peer.enable_cache(
            pipe, cache_config=config, calibrator_config=calibrators[chosen["calibrator"]]()
        )
    except ValueError as error:
        raise CannotRun(str(error)) from error
    return lambda **call: pipe(**call)


def diffusers(pipe: Any, setting: str, steps: int) -> Call:
    """Switch one of diffusers' caches on.

    `enable_cache` is missing where a model has no CacheMixin; the functions it calls are public and
    take any module. Where a pipeline opens no cache context, it is opened here around each call.
    """
    from diffusers import hooks

    name, given = options.parse_spec(setting)
    denoiser = getattr(pipe, "transformer", None)
    if denoiser is None:
        raise CannotRun("diffusers' caches are for transformers, this pipeline has none")
    try:
        if name == "first_block":
            threshold = take(given, setting, threshold=0.05)["threshold"]
            hooks.apply_first_block_cache(
                denoiser, hooks.FirstBlockCacheConfig(threshold=threshold)
            )
        elif name == "taylorseer":
            chosen = take(given, setting, interval=5, order=1, is_lite=False)
            config = hooks.TaylorSeerCacheConfig(
                cache_interval=chosen["interval"],
                max_order=chosen["order"],
                use_lite_mode=chosen["is_lite"],
                taylor_factors_dtype=denoiser.dtype,
                # Its own patterns find modules called "attn", which PixArt's are not.
                cache_identifiers=None if chosen["is_lite"] else MODULES,
            )
            hooks.apply_taylorseer_cache(denoiser, config)
        elif name == "magcache":
            chosen = take(given, setting, threshold=0.06, most=3)
            ratios = mag_ratios(pipe, steps)
            config = hooks.MagCacheConfig(
                threshold=chosen["threshold"],
                max_skip_steps=chosen["most"],
                num_inference_steps=steps,
                mag_ratios=ratios,
            )
            hooks.apply_mag_cache(denoiser, config)
        elif name == "pab":
            chosen = take(given, setting, spatial=2, cross=4)
            config = hooks.PyramidAttentionBroadcastConfig(
                spatial_attention_block_skip_range=chosen["spatial"],
                cross_attention_block_skip_range=chosen["cross"],
                current_timestep_callback=timestep_of(denoiser),
            )
            hooks.apply_pyramid_attention_broadcast(denoiser, config)
        elif name == "fastercache":
            chosen = take(given, setting, spatial=2, unconditional=5)
            config = hooks.FasterCacheConfig(
                spatial_attention_block_skip_range=chosen["spatial"],
                unconditional_batch_skip_range=chosen["unconditional"],
                current_timestep_callback=timestep_of(denoiser),
                attention_weight_callback=lambda _: 0.3,
                tensor_format="BCHW",
            )
            hooks.apply_faster_cache(denoiser, config)
        elif name == "seacache":
            chosen = take(given, setting, threshold=0.25, most=2)
            config = hooks.SeaCacheConfig(
                threshold=chosen["threshold"],
                max_consecutive_cached=chosen["most"],
                raw_vision_callback=latents_of,
            )
            hooks.apply_sea_cache(denoiser, config)
        else:
            raise CannotRun(f"no method {name}")
    except (AttributeError, ValueError) as error:
        raise CannotRun(f"{type(error).__name__}: {error}") from error
    return functools.partial(in_context, pipe, denoiser)


MODULES = [r"transformer_blocks\.\d+\.(attn1|attn2|ff)"]


def latents_of(module: Any, args: Any, kwargs: Any) -> list[Any]:
    """Return what SeaCache looks at: each row's latents as [c, 1, height, width]."""
    latents = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return [row[:, None] for row in latents]


def in_context(pipe: Any, denoiser: Any, **call: Any) -> Any:
    """Call a pipeline with fresh cache state, each step inside a cache context that says where it
    is; the noise level of a flow is its timestep over 1000.
    """
    from diffusers.hooks import HookRegistry
    from diffusers.hooks.hooks import CacheContext, _set_cache_context

    registry = HookRegistry.check_if_exists_or_initialize(denoiser)
    registry.reset_stateful_hooks()
    step = 0

    def enter(module: Any, args: Any, kwargs: Any) -> None:
        nonlocal step
        timestep = float(kwargs["timestep"].flatten()[0])
        context = CacheContext("cond", step, call["num_inference_steps"], timestep, timestep / 1000)
        _set_cache_context(denoiser, context)
        step += 1

    entering = denoiser.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        return pipe(**call)
    finally:
        entering.remove()
        registry.reset_stateful_hooks()


def mag_ratios(pipe: Any, steps: int) -> list[float]:
    """Return MagCache's ratios as its own calibration prints them, on a prompt of ours."""
    from diffusers import hooks

    config = hooks.MagCacheConfig(num_inference_steps=steps, calibrate=True)
    hooks.apply_mag_cache(pipe.transformer, config)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        pipe(prompt=PROMPT, num_inference_steps=steps, output_type="latent")
    found = re.search(r"\[[\d., e+-]+\]", printed.getvalue())
    if found is None:
        raise CannotRun("MagCache's calibration printed no ratios")
    ratios: list[float] = json.loads(found[0])
    return ratios


def timestep_of(denoiser: Any) -> Callable[[], float]:
    """Return a function that tells the timestep of the denoiser's current call."""
    seen = {"timestep": 0.0}

    def note(module: Any, args: Any, kwargs: Any) -> None:
        given = kwargs.get("timestep", args[2] if len(args) > 2 else 0.0)
        seen["timestep"] = float(given.flatten()[0]) if hasattr(given, "flatten") else float(given)

    denoiser.register_forward_pre_hook(note, with_kwargs=True)
    return lambda: seen["timestep"]


def deepcache(pipe: Any, setting: str, steps: int) -> Call:
    """Switch DeepCache on; it is for UNets."""
    if getattr(pipe, "unet", None) is None:
        raise CannotRun("DeepCache is for UNets: it reuses what comes up from below a skip branch")
    try:
        from DeepCache import DeepCacheSDHelper
    except ImportError:
        raise CannotRun("not installed: pip install DeepCache") from None
    _, given = options.parse_spec(setting)
    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(
        cache_interval=take(given, setting, interval=3)["interval"], cache_branch_id=0
    )
    helper.enable()
    return lambda **call: pipe(**call)
