"""DBCache: its limits by hand, and block calls and pictures on a pipeline."""

from typing import Any

import pytest
import torch

from skipstep.caching.base import Seen, Step
from skipstep.caching.dbcache import DBCache
from skipstep.caching.gates.first_block import FirstBlockGate
from skipstep.plugins.errors import Incompatible
from skipstep.testing import run, tiny_pipeline

torch.set_num_threads(1)
ALWAYS: dict[str, Any] = {"threshold": 10.0, "warmup_steps": 2, "final_steps": 1, "max_skips": None}


def play(gate: FirstBlockGate, values: list[float], forced: tuple[int, ...] = ()) -> list[str]:
    """Return what is decided at each step for one row; forced steps are computed all the same."""
    state, found = gate.init(1), []
    for index, value in enumerate(values):
        step, p = Step(index, len(values)), torch.full((1, 4), value)
        (choice,) = gate.decide(state, step, p)
        found.append(choice.why)
        if choice.compute or index in forced:
            gate.observe(state, Seen(step, [0], p, p))
    return found


def test_the_run_has_a_limit_of_cached_steps() -> None:
    gate = FirstBlockGate(threshold=1, max_cached=2)
    assert play(gate, [1.0] * 5)[1:] == ["small change"] * 2 + ["cached limit"] * 2


def test_forced_steps_are_not_counted_as_cached() -> None:
    gate = FirstBlockGate(threshold=1, max_cached=2)
    assert play(gate, [1.0] * 6, forced=(1, 2)).count("small change") == 4
    assert play(gate, [1.0] * 6, forced=(1, 2))[5] == "cached limit"


def test_distances_of_skips_in_a_row_may_not_add_up() -> None:
    gate = FirstBlockGate(threshold=0.5, max_accumulated=0.25)
    # .1, .1 + .1, then .3 in sum: computed; from there zero.
    found = play(gate, [1.0, 1.1, 1.1, 1.1, 1.1, 1.1])
    assert (
        found
        == ["no history", "small change", "small change", "accumulated"] + ["small change"] * 2
    )


def blocks_run(pipe: Any, names: tuple[str, ...]) -> tuple[list[tuple[str, int]], list[Any]]:
    """Record which blocks run, by a linear layer in each."""
    ran: list[tuple[str, int]] = []
    hooks = []
    for name in names:
        for j, block in enumerate(getattr(pipe.transformer, name)):
            layer = next(m for m in block.modules() if isinstance(m, torch.nn.Linear))
            hooks.append(layer.register_forward_hook(lambda *_, k=(name, j): ran.append(k)))
    return ran, hooks


@pytest.mark.parametrize(("front", "back"), [(1, 0), (1, 1), (2, 1), (3, 0)])
def test_front_and_back_blocks_run_on_a_skip_and_no_others(front: int, back: int) -> None:
    tiny = tiny_pipeline("pixart")
    blocks = len(tiny.pipe.transformer.transformer_blocks)
    if front + back >= blocks:
        pytest.skip(f"the tiny model has {blocks} blocks")
    plugin = DBCache(front=front, back=back, **ALWAYS)
    tiny.pipe.enable_plugin(plugin)
    run(tiny, steps=5)
    ran, hooks = blocks_run(tiny.pipe, ("transformer_blocks",))
    picture = run(tiny, steps=5)
    for hook in hooks:
        hook.remove()
    whole = list(range(blocks))
    skip = [*range(front), *range(blocks - back, blocks)]
    assert [j for _, j in ran] == whole * 2 + skip * 2 + whole
    report = tiny.pipe.plugin_report()
    assert report.fraction == pytest.approx((3 + 2 * len(skip) / blocks) / 5)
    assert torch.equal(run(tiny, steps=5), picture)


def test_a_deeper_probe_splits_a_batch_like_single_runs() -> None:
    tiny = tiny_pipeline("flux")
    options = {"front": 2, "warmup_steps": 2, "final_steps": 1, "max_skips": None}
    blocks = len(tiny.pipe.transformer.transformer_blocks)
    if blocks < 3:
        options["front"] = blocks - 1
    tiny.pipe.enable_plugin("dbcache", threshold=0, **options)
    run(tiny, steps=6, batch=3)
    values = [c.value for c in tiny.pipe.plugin_report().calls[2].choices if c.value is not None]
    middle = sorted(values)
    tiny.pipe.enable_plugin("dbcache", threshold=(middle[0] + middle[1]) / 2, **options)
    batch = run(tiny, steps=6, batch=3)
    assert "+" in tiny.pipe.plugin_report().timeline()["transformer"]
    for seed in range(3):
        torch.testing.assert_close(batch[seed], run(tiny, steps=6, seed=seed)[0], rtol=0, atol=1e-5)


def test_one_block_in_front_and_none_behind_is_first_block_cache() -> None:
    tiny = tiny_pipeline("pixart")
    common: dict[str, Any] = {"threshold": 0.4, "warmup_steps": 2, "max_skips": 3}
    tiny.pipe.enable_plugin("fbcache", **common)
    expected = run(tiny, steps=8)
    tiny.pipe.enable_plugin("dbcache", front=1, back=0, **common, replace=True)
    assert torch.equal(run(tiny, steps=8), expected)


def test_more_blocks_than_there_are_are_refused() -> None:
    tiny = tiny_pipeline("pixart")
    with pytest.raises(Incompatible, match="decides behind 60 blocks.*fewer than the 4"):
        tiny.pipe.enable_plugin("dbcache", front=60)
