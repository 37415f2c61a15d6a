"""Every cache on every family of pipelines, from outside: exact where it must be, counted by hooks.

The default run takes a diagonal of the matrix: every test meets half the families, every family
and every preset occur; the rest is marked slow. `benchmarks/coverage.py` shows the whole matrix.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skipstep.plugins.errors import Incompatible
from skipstep.plugins.report import Report
from skipstep.testing import FAMILIES, Tiny, run, tiny_pipeline
from skipstep.testing.presets import ADAPTIVE, PRESETS, lively, never_skips, splitting_threshold
from skipstep.testing.state import attributes, changes, picture_of

STEPS = 8
BATCH = 4
# Uncached, a sample of a batch and the same sample alone differ by rounding. Over all families the
# caches leave that at most 3.5 times as large.
NOISE_FACTOR = 5
# Tests that go over the matrix; each meets other cells in the default run.
OFFSETS = 6

UNETS = {"sd15", "sdxl"}
NEEDS_BLOCKS = {
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
# Packed video tokens, and pictures and text in one stream: the grid of tokens cannot be known.
NO_GRID = ["ltx", "zimage"]
# Found by looking: these models attend to their text in joint blocks.
HAS_CROSS_ATTENTION = {"pixart", "wan", "ltx", "sdxl", "sd15"}
UNGUIDED = {"flux", "flux_modular", "hunyuanvideo"}


def is_served(family: str, preset: str) -> bool:
    """Tell whether a preset serves a family: deep features are UNets', stacks of blocks DiTs', and
    a model that takes guidance as an input has no unconditional half.
    """
    if preset == "deepcache":
        return family in UNETS
    if preset == "freqca" and family in NO_GRID:
        return False
    if preset == "tgate":
        return family in HAS_CROSS_ATTENTION
    if preset == "cfgcache" and family in UNGUIDED:
        return False
    return not (family in UNETS and preset in NEEDS_BLOCKS)


CELLS = [(family, preset) for family in FAMILIES for preset in PRESETS]


@functools.cache
def turns(presets: tuple[str, ...]) -> dict[tuple[int, str], str]:
    """Return which preset a family meets in the default run, by (offset, family).

    Every second family has a turn. It takes the preset that was met least, and of those the one
    that fewest families can serve.
    """
    families_of = {preset: sum(is_served(f, preset) for f in FAMILIES) for preset in presets}
    met = dict.fromkeys(presets, 0)
    found = {}
    for offset in range(OFFSETS):
        for number, family in enumerate(FAMILIES):
            served = [preset for preset in presets if is_served(family, preset)]
            if (number + offset) % 2 == 0 and served:
                preset = min(served, key=lambda name: (met[name], families_of[name]))
                met[preset] += 1
                found[offset, family] = preset
    return found


def cells(offset: int, presets: tuple[str, ...] = PRESETS) -> list[Any]:
    """List the cells that work as test parameters; those without a turn are slow."""
    found = []
    for family in FAMILIES:
        for preset in [preset for preset in presets if is_served(family, preset)]:
            chosen = turns(tuple(presets)).get((offset, family)) == preset
            marks = [] if chosen else [pytest.mark.slow]
            found.append(pytest.param(family, preset, id=f"{family}-{preset}", marks=marks))
    return found


@functools.cache
def tiny_of(family: str) -> Tiny:
    """Build a family once for the whole file; every test leaves it as it was."""
    return tiny_pipeline(family)


@functools.cache
def uncached(family: str, steps: int = STEPS, seed: int = 0, batch: int = 1) -> Tensor:
    """Run a family without plugins."""
    return run(tiny_of(family), steps=steps, seed=seed, batch=batch)


@contextlib.contextmanager
def enabled(tiny: Tiny, plugin: Any) -> Iterator[Any]:
    """Switch a plugin on, and off again whatever happens."""
    handle = tiny.pipe.enable_plugin(plugin)
    try:
        yield handle
    finally:
        handle.detach()


def last_report(tiny: Tiny) -> Report:
    """Return the report of the last run."""
    report = tiny.pipe.plugin_report()
    assert isinstance(report, Report)
    return report


def another_size(tiny: Tiny) -> dict[str, Any]:
    """Return the arguments for another size, where the pipeline has one."""
    if "width" not in tiny.call:
        return {}
    # This tiny AuraFlow has positions for its own size and smaller ones only.
    is_small = type(tiny.pipe).__name__ == "AuraFlowPipeline"
    return {"width": tiny.call["width"] // 2 if is_small else tiny.call["width"] * 2}


@pytest.mark.parametrize(("family", "preset"), cells(0))
def test_a_gate_that_never_skips_is_bit_identical_to_baseline(family: str, preset: str) -> None:
    tiny = tiny_of(family)
    with enabled(tiny, never_skips(preset, tiny, STEPS)):
        assert torch.equal(run(tiny, steps=STEPS), uncached(family))
        report = last_report(tiny)
    assert report.computed == report.total > 0
    assert report.fraction == 1
    assert report.verdict.startswith("Nothing was skipped")


@pytest.mark.parametrize(("family", "preset"), cells(1))
def test_a_second_run_equals_the_first_and_disabling_restores(family: str, preset: str) -> None:
    tiny = tiny_of(family)
    plugin = lively(preset, tiny, STEPS)
    expected = uncached(family)
    run(tiny, steps=STEPS)
    before, looks = attributes(tiny.pipe), picture_of(tiny.pipe)
    run(tiny, steps=STEPS)
    own_changes = changes(before, attributes(tiny.pipe))
    handle = tiny.pipe.enable_plugin(plugin)
    first = run(tiny, steps=STEPS)
    report = last_report(tiny)
    second = run(tiny, steps=STEPS)
    handle.detach()
    assert torch.equal(first, second)
    assert report.computed < report.total
    assert not torch.equal(first, expected), "nothing was skipped, so the test proves nothing"
    left = [name for name in changes(before, attributes(tiny.pipe)) if name not in own_changes]
    assert not left, f"after disabling, this is not as it was: {left}"
    assert torch.equal(run(tiny, steps=STEPS), expected)
    assert picture_of(tiny.pipe) == looks


@pytest.mark.parametrize(("family", "preset"), cells(2))
def test_runs_of_other_lengths_sizes_and_batches_equal_fresh_ones(family: str, preset: str) -> None:
    tiny = tiny_of(family)
    plugin = lively(preset, tiny, STEPS)
    tasks: list[dict[str, Any]] = [
        {"steps": STEPS},
        {"steps": 5, "batch": 3, "seed": 1},
        {"steps": 2},
        {"steps": 6, **another_size(tiny)},
        {"steps": STEPS},
    ]
    with enabled(tiny, plugin):
        in_a_row = [run(tiny, **task) for task in tasks]
    for task, found in zip(tasks, in_a_row, strict=True):
        with enabled(tiny, plugin):
            assert torch.equal(found, run(tiny, **task)), task


def interrupt_at(module: nn.Module, call: int) -> Any:
    """Make a module raise KeyboardInterrupt in the given call, counted from now; 0 is the first."""
    seen = [0]

    def hook(*_: object) -> None:
        seen[0] += 1
        if seen[0] > call:
            raise KeyboardInterrupt("the user pressed Ctrl-C")

    return module.register_forward_pre_hook(hook)


@pytest.mark.parametrize(("family", "preset"), cells(3))
def test_an_interrupted_run_leaves_no_state(family: str, preset: str) -> None:
    tiny = tiny_of(family)
    plugin = lively(preset, tiny, STEPS)
    denoiser = getattr(tiny.pipe, tiny.denoiser)
    with enabled(tiny, plugin):
        clean, clean_batch = run(tiny, steps=STEPS), run(tiny, steps=5, batch=2)
        own = vars(tiny.pipe.scheduler).get("step")
        hook = interrupt_at(denoiser, 3)
        with pytest.raises(KeyboardInterrupt):
            run(tiny, steps=STEPS)
        hook.remove()
        assert vars(tiny.pipe.scheduler).get("step") is own
        assert "KeyboardInterrupt" in last_report(tiny).verdict
        assert torch.equal(run(tiny, steps=5, batch=2), clean_batch)
        assert torch.equal(run(tiny, steps=STEPS), clean)
    assert torch.equal(run(tiny, steps=STEPS), uncached(family))


def furthest(batch: Tensor, singles: list[Tensor]) -> float:
    """Return the largest difference between the samples of a batch and their single runs."""
    rows = zip(batch, singles, strict=True)
    return max(float((row - single[0]).abs().max()) for row, single in rows)


@pytest.mark.parametrize(("family", "preset"), cells(4, ADAPTIVE))
def test_a_batch_equals_its_single_runs_up_to_the_uncached_noise(family: str, preset: str) -> None:
    tiny = tiny_of(family)
    options: dict[str, Any] = {}
    if preset != "magcache":
        options["threshold"] = splitting_threshold(preset, tiny, STEPS, BATCH)
    plugin = lively(preset, tiny, STEPS, **options)
    noise = furthest(
        uncached(family, batch=BATCH), [uncached(family, seed=seed) for seed in range(BATCH)]
    )
    with enabled(tiny, plugin):
        batch = run(tiny, steps=STEPS, batch=BATCH)
        marks = "".join(last_report(tiny).timeline().values())
        singles = [run(tiny, steps=STEPS, seed=seed) for seed in range(BATCH)]
    if preset != "magcache":  # its ratios are the same for every sample, so no two disagree
        assert "+" in marks, "no two samples disagreed, so the test proves nothing"
    assert 0 < noise < 1e-5
    assert furthest(batch, singles) <= NOISE_FACTOR * noise


class LinearWork:
    """Count the multiplications of every linear layer of a module, by hooks of our own."""

    def __init__(self, module: nn.Module) -> None:
        self.done: dict[str, int] = {}
        self.hooks = []
        for path, layer in module.named_modules():
            if isinstance(layer, nn.Linear):
                hook = functools.partial(self.count, path)
                self.hooks.append(layer.register_forward_hook(hook))

    def count(self, path: str, layer: nn.Linear, inputs: tuple[Tensor, ...], _: object) -> None:
        """Add one call."""
        self.done[path] = self.done.get(path, 0) + inputs[0].numel() * layer.weight.shape[0]

    def below(self, prefix: str) -> int:
        """Sum up a part of the model.

        DiT keeps its time embedding inside the blocks, and reads the first block's from outside.
        """
        return sum(
            work
            for path, work in self.done.items()
            if f"{path}.".startswith(prefix) and ".norm1.emb." not in path
        )

    def __enter__(self) -> "LinearWork":
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()


def units_of(preset: str, denoiser: nn.Module) -> list[str]:
    """Return the paths of what a preset may skip, found without the code under test.

    The whole model, its blocks, the levels of a UNet below its first one, or the attention and
    feed-forward layers in its blocks.
    """
    if preset in ("easycache", "abcache", "cfgcache"):
        return [""]
    lists = {
        name: child
        for name, child in denoiser.named_children()
        if isinstance(child, nn.ModuleList) and "refiner" not in name and "blocks" in name
    }
    blocks = [f"{name}.{i}." for name, child in lists.items() for i in range(len(child))]
    if preset == "deepcache":
        return [path for path in blocks if path != "up_blocks.2."] + ["mid_block."]
    return blocks or ["layers.0.", "layers.1.", "layers.2.", "layers.3."]


@pytest.mark.parametrize(("family", "preset"), cells(5))
def test_the_reported_work_is_what_hooks_on_linear_layers_count(family: str, preset: str) -> None:
    tiny = tiny_of(family)
    denoiser = getattr(tiny.pipe, tiny.denoiser)
    plugin = lively(preset, tiny, STEPS)
    with LinearWork(denoiser) as full:
        run(tiny, steps=STEPS, batch=2)
    with enabled(tiny, plugin):
        run(tiny, steps=STEPS, batch=2)  # FLOPs are measured in the first run, by running
        with LinearWork(denoiser) as done:
            run(tiny, steps=STEPS, batch=2)
        report = last_report(tiny)
    if preset in ("clusca", "duca", "ecad", "foresight", "toca"):
        # Module by module or token by token: the tests of their spans count exactly.
        assert report.flops_done and report.flops_full
        done_all, full_all = sum(done.done.values()), sum(full.done.values())
        share = report.flops_done / report.flops_full
        if tiny.denoiser == "unet":  # its convolutions, which no linear layer counts, always run
            assert done_all / full_all < share
        else:
            assert done_all / full_all == pytest.approx(share, abs=0.1)
        assert report.fraction < 1
        return
    if preset in ("fastercache", "fora", "pab", "taylorseer", "tgate"):
        # Attention and feed-forward layers; norms and modulations stay. All are skipped together.
        skippable = [path for path in full.done if done.done.get(path, 0) < full.done[path]]
        assert skippable
        shares = [done.done.get(path, 0) / full.done[path] for path in skippable]
    else:
        if preset == "teacache":  # it looks behind the first norm, whose modulation runs always
            always = [path for path in full.done if done.done.get(path, 0) >= full.done[path]]
            full.done = {path: n for path, n in full.done.items() if path not in always}
            done.done = {path: n for path, n in done.done.items() if path not in always}
        units = [unit for unit in units_of(preset, denoiser) if full.below(unit)]
        shares = [done.below(unit) / full.below(unit) for unit in units]
    assert sum(shares) / len(shares) == pytest.approx(report.fraction, abs=1e-9)
    assert report.fraction < 1


@pytest.mark.parametrize(
    ("family", "preset"),
    [
        cell
        for cell in CELLS
        if not is_served(*cell)
        and cell[1] != "cfgcache"
        and (cell[1] != "freqca" or cell[0] in UNETS)
    ],
    ids="-".join,
)
def test_a_family_that_a_preset_cannot_serve_is_refused_in_words(family: str, preset: str) -> None:
    tiny = tiny_of(family)
    before = attributes(tiny.pipe)
    options = {"ratios": {"ratios": (1.0, 1.0)}} if preset == "magcache" else {}
    why = "has no cross_attention modules" if preset == "tgate" else "is (not )?a UNet"
    with pytest.raises(Incompatible, match=rf"^{preset}: \w+Model\w* {why}"):
        tiny.pipe.enable_plugin(preset, **options)
    assert changes(before, attributes(tiny.pipe)) == []
    assert torch.equal(run(tiny, steps=STEPS), uncached(family))


@pytest.mark.parametrize("family", NO_GRID)
def test_a_grid_that_cannot_be_known_is_computed_in_full_and_said(family: str) -> None:
    tiny = tiny_of(family)
    with enabled(tiny, lively("freqca", tiny, STEPS)):
        assert torch.equal(run(tiny, steps=STEPS), uncached(family))
        report = last_report(tiny)
    assert report.fraction == 1
    assert "fits no grid" in str(report) and "Give grid=(rows, columns)" in str(report)


def test_the_default_run_meets_every_family_and_every_preset() -> None:
    chosen = [cell.values for offset in range(OFFSETS) for cell in cells(offset) if not cell.marks]
    assert {family for family, _ in chosen} == set(FAMILIES)
    assert {preset for _, preset in chosen} == set(PRESETS)
    for offset in range(OFFSETS):
        assert len([cell for cell in cells(offset) if not cell.marks]) >= len(FAMILIES) // 2
