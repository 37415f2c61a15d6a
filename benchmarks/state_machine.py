"""Random sequences of everything a user may do to a pipeline; every run must equal a fresh one.

A sequence enables, reconfigures, replaces and disables caches, runs other lengths, sizes and
batches, pauses, gives wrong options, and presses Ctrl-C at any place. Each picture is compared with
that of a pipeline built for it alone. At the end everything is disabled: then the picture and all
attributes of all modules and of the scheduler must be bit-identical to those of a pipeline that
never saw a plugin.

    python -m benchmarks.state_machine --sequences 1000
"""

import argparse
import contextlib
import functools
import sys
import time
from collections import Counter
from typing import Any, ClassVar

import torch
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from torch import Tensor

import skipstep
from skipstep.plugins.errors import BadOption, Incompatible, PluginError
from skipstep.plugins.run import in_any_run
from skipstep.testing import Tiny, run, tiny_pipeline
from skipstep.testing.state import picture_of

__all__ = ["MACHINES", "PipelineMachine", "run_sequences"]

Task = tuple[int, int, int]
"""Steps, batch, and by how much the width is multiplied."""

FAMILIES = ("pixart", "flux")
LAST_TASK: Task = (3, 1, 1)
RATIOS = {"ratios": [1.0, 0.98, 1.03, 1.0, 0.97, 1.01]}

# Two settings of each, so that enabling the same name again reconfigures. Warm-ups are short: one
# computed step cannot overwrite all that a run might have left behind.
PLUGINS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("fora", {"interval": 2, "warmup_steps": 1}),
    ("fora", {"interval": 3, "max_skips": 1}),
    ("taylorseer", {"interval": 2, "warmup_steps": 1}),
    ("taylorseer", {"interval": 3, "order": 2, "warmup_steps": 1}),
    ("abcache", {"interval": 2, "warmup_steps": 1}),
    ("abcache", {"interval": 3, "order": 3, "warmup_steps": 1, "final_steps": 0}),
    ("easycache", {"threshold": 0.3, "warmup_steps": 2}),
    ("easycache", {"threshold": 5.0, "warmup_steps": 2, "delta": False}),
    ("fbcache", {"threshold": 0.3, "warmup_steps": 1}),
    ("fbcache", {"threshold": 2.0, "warmup_steps": 2}),
    ("magcache", {"ratios": RATIOS, "threshold": 0.1, "warmup_steps": 1}),
    ("magcache", {"ratios": RATIOS, "threshold": 0.5, "warmup_steps": 2, "max_skips": 1}),
    ("cache", {"gate": "easycache", "forecaster": "taylor", "span": "residual"}),
    (
        "cache",
        {"gate": "interval", "forecaster": "lagrange", "span": "residual", "warmup_steps": 1},
    ),
)

numbers = st.integers(0, len(PLUGINS) - 1)
tasks = st.tuples(st.sampled_from([2, 4, 6]), st.sampled_from([1, 2]), st.sampled_from([1, 2]))
# Where Ctrl-C is pressed: the k-th denoiser call, or the decoder.
places = st.sampled_from(["0", "1", "2", "3", "decoder"])


def picture(tiny: Tiny, task: Task) -> Tensor:
    """Run a task; sizes grow in width."""
    steps, batch, wide = task
    return run(tiny, steps=steps, batch=batch, width=tiny.call["width"] * wide)


@functools.cache
def fresh(family: str, number: int | None, task: Task) -> Tensor:
    """Run a task on a pipeline built for it alone, with one plugin or none."""
    tiny = tiny_pipeline(family)
    if number is not None:
        name, options = PLUGINS[number]
        tiny.pipe.enable_plugin(name, **options)
    return picture(tiny, task)


@functools.cache
def fresh_state(family: str) -> dict[str, Any]:
    """Return what a pipeline looks like that ran the last task and never saw a plugin."""
    tiny = tiny_pipeline(family)
    picture(tiny, LAST_TASK)
    return picture_of(tiny.pipe)


class PipelineMachine(RuleBasedStateMachine):
    """One pipeline, what is enabled on it, and the actions of a user."""

    family: ClassVar[str]
    counts: ClassVar[Counter[str]] = Counter()

    @initialize()
    def build(self) -> None:
        """Start with a new pipeline."""
        self.tiny = tiny_pipeline(self.family)
        self.pipe = self.tiny.pipe
        self.active: int | None = None
        self.count("sequences")

    def count(self, what: str) -> None:
        """Count what was done."""
        self.counts[f"{self.family} {what}"] += 1

    @property
    def active_name(self) -> str | None:
        """Return the name of what is enabled."""
        return None if self.active is None else PLUGINS[self.active][0]

    @rule(number=numbers, replace=st.booleans())
    def enable(self, number: int, replace: bool) -> None:
        """Enable, reconfigure or replace; a second cache without `replace` is refused."""
        self.count("enables")
        name, options = PLUGINS[number]
        if self.active_name not in (None, name) and not replace:
            with expected(Incompatible):
                self.pipe.enable_plugin(name, **options)
            return
        self.pipe.enable_plugin(name, replace=replace, **options)
        self.active = number

    @rule()
    def disable(self) -> None:
        """Disable what is active; without that it is an error."""
        self.count("disables")
        if self.active_name is None:
            with expected(PluginError):
                self.pipe.disable_plugin("fora")
            return
        self.pipe.disable_plugin(self.active_name)
        self.active = None

    @rule(number=numbers)
    def mistake(self, number: int) -> None:
        """Give a wrong option, and a plugin that does not fit; nothing may change."""
        self.count("mistakes")
        with expected(BadOption):
            self.pipe.enable_plugin(PLUGINS[number][0], warmup_steps=-1)
        with expected(Incompatible):
            self.pipe.enable_plugin("deepcache", replace=True)

    @rule(task=tasks)
    def run_once(self, task: Task) -> None:
        """Run; the picture is that of a fresh pipeline with the same plugin."""
        self.count("runs")
        same(picture(self.tiny, task), fresh(self.family, self.active, task), self, task)

    @rule(task=tasks)
    def run_paused(self, task: Task) -> None:
        """Run inside `plugins_off`; the picture is the plain one."""
        self.count("paused runs")
        with self.pipe.plugins_off():
            same(picture(self.tiny, task), fresh(self.family, None, task), self, task)

    @rule(task=tasks, place=places)
    def interrupt(self, task: Task, place: str) -> None:
        """Press Ctrl-C; if the place is never reached, the run must be as always."""
        self.count("interrupts")
        module = self.pipe.vae.decoder if place == "decoder" else self.pipe.transformer
        left = [0 if place == "decoder" else int(place)]

        def press(*_: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        hook = module.register_forward_pre_hook(press)
        try:
            found = picture(self.tiny, task)
        except KeyboardInterrupt:
            if in_any_run() or "step" in vars(self.pipe.scheduler):
                raise AssertionError("an interrupted run is still open") from None
        else:
            same(found, fresh(self.family, self.active, task), self, task)
        finally:
            hook.remove()

    def teardown(self) -> None:
        """Disable everything; then nothing may tell this pipeline from one without plugins."""
        self.pipe.disable_plugins()
        self.active = None
        found = picture(self.tiny, LAST_TASK)
        same(found, fresh(self.family, None, LAST_TASK), self, LAST_TASK)
        state, plain = picture_of(self.pipe), fresh_state(self.family)
        if state != plain:
            parts = [part for part in plain if state.get(part) != plain[part]]
            raise AssertionError(f"{self.family}: not as if never enabled: {parts}")


@contextlib.contextmanager
def expected(error: type[Exception]) -> Any:
    """Demand an error."""
    try:
        yield
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")


def same(found: Tensor, wanted: Tensor, machine: PipelineMachine, task: Task) -> None:
    """Demand equal pictures, to the bit."""
    if not torch.equal(found, wanted):
        plugin = "no plugin" if machine.active is None else PLUGINS[machine.active]
        raise AssertionError(
            f"{machine.family} with {plugin}, (steps, batch, width) {task}: "
            "not the picture of a fresh pipeline"
        )


class PixArtMachine(PipelineMachine):
    """PixArt: one stack of blocks, guidance in one batch, a sampler with memory."""

    family = "pixart"


class FluxMachine(PipelineMachine):
    """Flux: two stacks of blocks, guidance as an input."""

    family = "flux"


MACHINES: dict[str, type[PipelineMachine]] = {"pixart": PixArtMachine, "flux": FluxMachine}


def run_sequences(
    family: str, sequences: int, actions: int, start: int = 0, *, shrink: bool = True
) -> None:
    """Run random sequences on one family; raises what the shortest failing one raised."""
    chosen = settings(
        max_examples=sequences,
        stateful_step_count=actions,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(start)(MACHINES[family]), settings=chosen)


def main() -> None:
    """Run the sequences and print what was done and how it ended."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sequences", type=int, default=1000, help="shared by both families")
    parser.add_argument("--actions", type=int, default=10, help="most actions in a sequence")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()
    failed = 0
    for number, family in enumerate(FAMILIES):
        share = given.sequences // len(FAMILIES)
        try:
            run_sequences(family, share, given.actions, given.seed + number)
        # Whatever a pipeline raises in a sequence is the outcome of that sequence.
        except Exception as error:
            failed += 1
            print(f"{family}: FAILED: {type(error).__name__}: {error}")
    for what, number in sorted(PipelineMachine.counts.items()):
        print(f"{what:<24} {number:>6}")
    total = sum(n for what, n in PipelineMachine.counts.items() if what.endswith("sequences"))
    print(
        f"{total} sequences of up to {given.actions} actions in "
        f"{time.monotonic() - started:.0f} s, skipstep {skipstep.__version__}: "
        + ("every picture and every final state bit-identical" if not failed else "FAILED")
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
