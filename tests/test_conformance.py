"""The conformance kit: our own plugins pass it, and every kind of breach is caught by it."""

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import pydantic
import pytest
import torch
from diffusers import DDIMScheduler, PixArtTransformer2DModel
from pydantic import ConfigDict, Field

from skipstep.plugins import catalog
from skipstep.testing import run, tiny_pipeline
from skipstep.testing.conformance import (
    CHECKED_ON,
    ConformanceError,
    check_on,
    check_options,
    check_plugin,
)
from skipstep.testing.presets import PRESETS, lively

UNET_REFUSES = {
    "adacache",
    "dbcache",
    "deltadit",
    "dicache",
    "fbcache",
    "foca",
    "freqca",
    "hicache",
    "hicachepp",
    "magcache",
    "seacache",
    "speca",
    "spectrum",
    "teacache",
}
# Chosen so that each preset skips in runs of six steps.
OPTIONS: dict[str, dict[str, Any]] = {
    "abcache": {"interval": 2, "warmup_steps": 2},
    "adacache": {"codebook": ((5.0, 2),), "warmup_steps": 2},
    "cfgcache": {"interval": 2, "warmup_steps": 1},
    "clusca": {"interval": 2, "clusters": 2, "warmup_steps": 2},
    "dbcache": {"threshold": 0.5, "warmup_steps": 2, "back": 0},
    "deepcache": {"interval": 2},
    "deltadit": {"interval": 2, "kept_blocks": 1},
    "dicache": {"threshold": 0.5, "warmup_steps": 2},
    "duca": {"interval": 3},
    "easycache": {"threshold": 0.5, "warmup_steps": 2},
    "fastercache": {"interval": 2, "warmup_steps": 2},
    "fbcache": {"threshold": 0.5, "warmup_steps": 2},
    "foca": {"interval": 2, "warmup_steps": 2},
    "foresight": {"tolerance": 4.0, "warmup_steps": 2},
    "fora": {"interval": 2, "warmup_steps": 2},
    "freqca": {"interval": 2, "warmup_steps": 2},
    "hicache": {"interval": 2, "warmup_steps": 2},
    "hicachepp": {"interval": 2, "warmup_steps": 2},
    "magcache": {
        "ratios": {"ratios": [1.0, 0.99, 1.02, 1.01, 0.98, 1.0]},
        "threshold": 0.5,
        "warmup_steps": 2,
    },
    "pab": {"warmup_steps": 2},
    "speca": {"threshold": 10.0, "warmup_steps": 2},
    "seacache": {"threshold": 1.0, "warmup_steps": 2},
    "spectrum": {"warmup_steps": 2},
    "taylorseer": {"interval": 3, "warmup_steps": 2},
    "teacache": {"threshold": 0.5, "warmup_steps": 2},
    "tgate": {"warmup_steps": 2},
    "toca": {"interval": 3, "warmup_steps": 2},
}


def options_for(name: str, family: str) -> dict[str, Any]:
    """Return the options of a preset; ECAD's plan is one for the family's blocks."""
    if name != "ecad":
        return OPTIONS[name]
    plugin = lively(name, tiny_pipeline(family), steps=6)
    return {"plan": plugin.plan, "on_mismatch": "warn"}  # type: ignore[attr-defined]


def load(name: str) -> type[Any]:
    """Load a plugin class of the catalogue."""
    found: type[Any] = catalog.load(name)
    return found


def presets_and_families() -> list[Any]:
    """List all pairs as parameters; three of four are slow."""
    pairs = [(i + j, name, f) for i, name in enumerate(PRESETS) for j, f in enumerate(CHECKED_ON)]
    return [
        pytest.param(name, family, marks=[pytest.mark.slow] if number % 4 else [])
        for number, name, family in pairs
    ]


@pytest.mark.parametrize(("name", "family"), presets_and_families())
def test_every_preset_conforms(name: str, family: str) -> None:
    why = check_on(family, load(name), **options_for(name, family))
    if name == "deepcache" and family != "sdxl":
        assert why is not None and "is not a UNet" in why
    elif name == "tgate" and family == "flux":
        assert why is not None and "has no cross_attention modules" in why
    elif name in UNET_REFUSES and family == "sdxl":
        assert why is not None and "is a UNet" in why
    else:
        assert why is None


@pytest.mark.parametrize("name", ["easycache", "fora"])
def test_the_product_conforms_under_a_presets_gate(name: str) -> None:
    gate = {"easycache": {"type": "easycache", "threshold": 0.5}}.get(name, {"type": "interval"})
    assert check_on("pixart", load("cache"), gate=gate, forecaster="taylor", span="output") is None


@pytest.mark.parametrize("name", catalog.BUILTIN)
def test_the_options_of_every_plugin_conform(name: str) -> None:
    check_options(load(name), **OPTIONS.get(name, {}))


FROZEN = pydantic.dataclasses.dataclass(
    frozen=True, kw_only=True, config=ConfigDict(extra="forbid")
)


class Base:
    """What the plugins below have in common; it does not get in the way of pydantic."""

    name: ClassVar[str] = "dimmer"
    kind: ClassVar[str] = "custom"
    summary: ClassVar[str] = "Makes what the denoiser says a little smaller."
    paper: ClassVar[str] = ""


def denoiser_of(site: Any) -> Any:
    """Return the module a plugin wraps."""
    return site.profile.denoisers[0].module


def scaled(output: Any, factor: float) -> Any:
    """Scale a denoiser's output."""
    if isinstance(output, tuple):
        return tuple(part * factor for part in output)
    return type(output)(sample=output.sample * factor)


@FROZEN
class Dimmer(Base):
    """A plugin that keeps every rule."""

    factor: Annotated[float, Field(gt=0, le=1, description="How much is left.")] = 0.9

    def attach(self, site: Any) -> None:
        """Scale the output while this pipeline runs."""

        def dim(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = call_next(*args, **kwargs)
            return output if site.run() is None else scaled(output, self.factor)

        site.wrap(denoiser_of(site), dim, 50)


def test_a_plugin_that_keeps_the_rules_conforms() -> None:
    assert check_plugin(Dimmer, factor=0.8).served == list(CHECKED_ON)


def test_the_plugin_of_this_test_does_something() -> None:
    """Otherwise its breaches below would not be seen for another reason."""
    tiny = tiny_pipeline("pixart")
    plain = run(tiny)
    tiny.pipe.enable_plugin(Dimmer())
    assert not torch.equal(run(tiny), plain)


@pytest.mark.parametrize("beside", [None, "abcache"])
def test_a_custom_plugin_is_told_the_step(beside: str | None) -> None:
    """With a cache beside it a call is still counted once."""
    seen: list[int] = []

    @FROZEN
    class Watcher(Base):
        """Notes the step of every call."""

        def attach(self, site: Any) -> None:
            """Look at the run."""

            def watch(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
                seen.append(site.run().step)
                return call_next(*args, **kwargs)

            site.wrap(denoiser_of(site), watch, 5)

    tiny = tiny_pipeline("wan")  # two calls per step
    if beside:
        tiny.pipe.enable_plugin(beside, interval=2, warmup_steps=1)
        expected = run(tiny)
    tiny.pipe.enable_plugin(Watcher())
    found = run(tiny)
    assert seen == [0, 0, 1, 1, 2, 2, 3, 3]
    if beside:
        assert torch.equal(found, expected)
        assert tiny.pipe.plugin_report().steps == 4


# Broken options.


@pydantic.dataclasses.dataclass(kw_only=True, config=ConfigDict(extra="forbid"))
class NotFrozen(Base):
    """Options that change behind one's back."""

    factor: Annotated[float, Field(description="How much is left.")] = 0.9


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="ignore"))
class NotStrict(Base):
    """A typo in an option is taken in silence."""

    factor: Annotated[float, Field(description="How much is left.")] = 0.9


@FROZEN
class Undescribed(Base):
    """Nobody knows what the option means."""

    factor: float = 0.9


@FROZEN
class ManyLines(Base):
    """Breaks every list of plugins."""

    summary: ClassVar[str] = "one\ntwo"


@FROZEN
class UnknownKind(Base):
    """Nobody knows where it attaches."""

    kind: ClassVar[str] = "cash"


@FROZEN
class NotJson(Base):
    """A recipe cannot hold the option."""

    factor: Annotated[float, Field(description="How much is left.")] = float("nan")


@FROZEN
class ComesBackAnother(Base):
    """Reading what was written doubles the option."""

    factor: Annotated[
        float, pydantic.AfterValidator(lambda x: 2 * x), Field(description="Twice what you give.")
    ] = 1.0


class NoDataclass(Base):
    """Has no options at all."""


@pytest.mark.parametrize(
    ("broken", "options", "words"),
    [
        (NotFrozen, {}, "not a frozen pydantic dataclass"),
        (NotStrict, {}, "takes unknown options in silence"),
        (Undescribed, {}, "option 'factor' has no description"),
        (ManyLines, {}, "`summary` must be one line"),
        (UnknownKind, {}, "unknown plugin kind 'cash'"),
        (NotJson, {"factor": float("inf")}, "its options are not JSON"),
        (ComesBackAnother, {"factor": 3.0}, "read back, .* became"),
        (NoDataclass, {}, "not a frozen pydantic dataclass"),
        (Dimmer, {"factor": 7.0}, "cannot be built: dimmer: factor=7.0 is not allowed"),
    ],
)
def test_broken_options_are_caught(broken: type[Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConformanceError, match=words):
        check_options(broken, **options)


# Broken behaviour: each class breaks one rule in `attach` or `why_not`, on PixArt.


@FROZEN
class LeavesHook(Base):
    """Uses a hook of its own and never takes it off."""

    def attach(self, site: Any) -> None:
        """Scale by a forward hook."""
        hook = denoiser_of(site).register_forward_hook
        hook(lambda module, args, output: output)


@FROZEN
class LeavesAttribute(Base):
    """Writes on the module."""

    def attach(self, site: Any) -> None:
        """Keep the step on the denoiser."""
        denoiser_of(site).step_of_dimmer = 0


@FROZEN
class LeavesClassAttribute(Base):
    """Writes on the model's class, which every pipeline of the process shares."""

    def attach(self, site: Any) -> None:
        """Keep the step on the class."""
        type(denoiser_of(site)).step_of_dimmer = 0


COUNT = [0]


@FROZEN
class Remembers(Base):
    """Counts its calls over all runs."""

    def attach(self, site: Any) -> None:
        """Dim more and more."""

        def dim(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output = call_next(*args, **kwargs)
            if site.run() is None:
                return output
            COUNT[0] += 1
            return scaled(output, 1 / (1 + 0.001 * COUNT[0]))

        site.wrap(denoiser_of(site), dim, 50)


@FROZEN
class RemembersInterrupts(Base):
    """Empties its memory at the end of a run that ends well, and only then."""

    def attach(self, site: Any) -> None:
        """Dim by the number of calls so far."""
        calls: list[int] = []

        def dim(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            run = site.run()
            if run is None:
                return call_next(*args, **kwargs)
            calls.append(1)
            output = scaled(call_next(*args, **kwargs), 1 / len(calls))
            if run.step == run.count - 1:
                calls.clear()
            return output

        site.wrap(denoiser_of(site), dim, 50)


@FROZEN
class TouchesOthers(Base):
    """Does not ask whose run it is."""

    def attach(self, site: Any) -> None:
        """Dim whoever calls the denoiser."""

        def dim(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            return scaled(call_next(*args, **kwargs), 0.9)

        site.wrap(denoiser_of(site), dim, 50)


@FROZEN
class Stacks(Base):
    """Patches the module by hand, so a second enabling lies on top of the first."""

    def attach(self, site: Any) -> None:
        """Exchange forward for the run; take off one layer at its end."""
        module = denoiser_of(site)
        layers: list[Any] = LAYERS

        def begin(run: Any) -> None:
            layers.append(module.forward)
            original = module.forward
            module.forward = lambda *a, **k: scaled(original(*a, **k), 0.9 - 0.1 * len(layers))

        site.on_begin(begin)
        site.on_end(lambda run: vars(module).pop("forward", None))


LAYERS: list[Any] = []


@FROZEN
class IsSaved(Base):
    """Registers a buffer, which lands in the checkpoint."""

    def attach(self, site: Any) -> None:
        """Keep a tensor on the denoiser."""
        denoiser_of(site).register_buffer("dimmer", torch.ones(1))


@FROZEN
class ChangesConfig(Base):
    """Writes into the pipeline's config, which lands in model_index.json."""

    def attach(self, site: Any) -> None:
        """Note the plugin in the config."""
        site.manager.pipe.register_to_config(dimmer="on")


@FROZEN
class ReportsTensors(Base):
    """Puts a tensor into the report."""

    def attach(self, site: Any) -> None:
        """Report what nobody can write to a file."""
        site.on_report(lambda run, report: report.notes.append(torch.ones(2)))


@FROZEN
class KeepsScheduler(Base):
    """Exchanges the scheduler and forgets to put it back."""

    def attach(self, site: Any) -> None:
        """Swap in a copy."""

        def begin(run: Any) -> None:
            vars(run.pipe)["scheduler"] = DDIMScheduler()

        site.on_begin(begin)


@FROZEN
class UsesGlobalRandomNumbers(Base):
    """Draws from the caller's generator."""

    def attach(self, site: Any) -> None:
        """Throw dice at the start of a run."""
        site.on_begin(lambda run: torch.manual_seed(0))


@FROZEN
class SwitchesType(Base):
    """Computes in float64 by a switch of the whole process."""

    def attach(self, site: Any) -> None:
        """Change torch's default."""
        site.on_end(lambda run: torch.set_default_dtype(torch.float64))


@FROZEN
class RaisesInAttach(Base):
    """Finds out too late that it cannot serve this pipeline."""

    def attach(self, site: Any) -> None:
        """Fail."""
        raise RuntimeError("no such layer")


@FROZEN
class RefusesWithoutWords(Base):
    """Says no."""

    def why_not(self, profile: Any) -> str:
        """Refuse."""
        return "no"

    def attach(self, site: Any) -> None:
        """Never get here."""


@FROZEN
class RefusesWithTrace(Base):
    """Looks at the pipeline by changing it."""

    def why_not(self, profile: Any) -> str:
        """Refuse after writing on the module."""
        profile.denoisers[0].module.was_looked_at = True
        return "this plugin serves audio models only; PixArt makes images"

    def attach(self, site: Any) -> None:
        """Never get here."""


@FROZEN
class FailsOnShortRuns(Base):
    """Needs three steps and does not say so."""

    def attach(self, site: Any) -> None:
        """Divide by what is zero in a run of two steps."""

        def dim(call_next: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            output, run = call_next(*args, **kwargs), site.run()
            return output if run is None else scaled(output, 1 / (run.count - 2))

        site.wrap(denoiser_of(site), dim, 50)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (LeavesHook, "enabling and disabling leaves a trace: transformer._forward_hooks"),
        (LeavesAttribute, r"leaves a trace: transformer.step_of_dimmer \(came\)"),
        (LeavesClassAttribute, "leaves a trace on a class: .*step_of_dimmer"),
        (Remembers, "the second of two equal runs must be bit-identical"),
        (RemembersInterrupts, "after Ctrl-C in the third denoiser call must be bit-identical"),
        (TouchesOthers, r"inside plugins_off\(\), the picture must be bit-identical"),
        (Stacks, "the second of two equal runs must be bit-identical"),
        (IsSaved, r"leaves a trace: .*transformer._buffers"),
        (ChangesConfig, "looking at the pipeline after enabling and disabling fails: ValueError"),
        (ReportsTensors, "the report is not JSON"),
        (KeepsScheduler, "the pipeline's scheduler is not the user's again"),
        (UsesGlobalRandomNumbers, "changes torch's random numbers for the whole process"),
        (SwitchesType, "changes torch's default type for the whole process"),
        (RaisesInAttach, r"enabling raises RuntimeError \(no such layer\)"),
        (RefusesWithoutWords, "refuses without a reason"),
        (RefusesWithTrace, r"refusing leaves a trace: transformer.was_looked_at \(came\)"),
        (FailsOnShortRuns, "a run of two steps fails: ZeroDivisionError"),
    ],
)
def test_broken_behaviour_is_caught(broken: type[Any], words: str) -> None:
    try:
        with pytest.raises(ConformanceError, match=words):
            check_on("pixart", broken)
    finally:
        LAYERS.clear()
        torch.set_default_dtype(torch.float32)
        if "step_of_dimmer" in vars(PixArtTransformer2DModel):
            del PixArtTransformer2DModel.step_of_dimmer


def test_a_plugin_that_serves_nothing_does_not_pass() -> None:
    @FROZEN
    class ForAudio(Base):
        """Refuses everything, politely."""

        def why_not(self, profile: Any) -> str:
            """Refuse."""
            return "this plugin serves audio models only; give it an audio pipeline"

        def attach(self, site: Any) -> None:
            """Never get here."""

    with pytest.raises(ConformanceError, match="refused every family, so nothing was checked"):
        check_plugin(ForAudio)
