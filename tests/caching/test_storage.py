"""Storage and budget: what is held takes the bytes allowed, and is handed out as it came."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from skipstep.caching.abcache import ABCache
from skipstep.caching.cfgcache import CFGCache
from skipstep.caching.fora import FORA
from skipstep.caching.forecasters.lagrange import Lagrange
from skipstep.caching.history import History
from skipstep.caching.passes import Memory
from skipstep.caching.storage import Budget, Storage, parse_bytes
from skipstep.caching.taylorseer import TaylorSeer
from skipstep.testing import run, tiny_pipeline
from tests.test_oracles import enabled

torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0B", 0), ("17B", 17), ("2GB", 2_000_000_000), ("0.5 MiB", 524_288), ("1.5kB", 1500)],
)
def test_amounts_are_read(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-", "two GB", "-2GB", "infGB", "nanB", "2 pints"])
def test_other_amounts_are_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match="give a number and a unit"):
        parse_bytes(text)
    with pytest.raises(ValueError, match="cache_memory"):
        ABCache(cache_memory=text)


def test_a_history_in_fewer_bits_equals_one_of_rounded_values() -> None:
    rounded, plain = History(2, 2, storage=Storage(torch.bfloat16)), History(2, 2)
    for time in range(3):
        x = torch.randn(2, 5, generator=torch.Generator().manual_seed(time))
        rounded.push(x, [0, 1], time)
        plain.push(x.bfloat16().float(), [0, 1], time)
    for rows in ([0, 1], [1]):
        for forecaster in (Lagrange(order=1), Lagrange(order=2)):
            found = rounded.forecast(forecaster, rows, 4)
            assert found.dtype == torch.float32
            assert torch.equal(found, plain.forecast(forecaster, rows, 4))
    assert rounded.nbytes * 2 == plain.nbytes
    assert not rounded.stale()


def test_a_history_on_the_host_hands_out_on_the_device() -> None:
    """Fake tensors have a device and no values, so this needs no accelerator."""
    with FakeTensorMode():
        history = History(2, 2, storage=Storage(torch.float16, torch.device("cpu")))
        for time in range(2):
            history.push(torch.empty(2, 3, device="cuda"), [0, 1], time)
        held = [slot.values for slot in history._slots if slot is not None]
        assert {(x.device.type, x.dtype) for x in held} == {("cpu", torch.float16)}
        for rows in ([0, 1], [0]):
            for order in (1, 2):
                found = history.forecast(Lagrange(order=order), rows, 3)
                assert (found.device.type, found.dtype) == ("cuda", torch.float32)


def test_a_model_that_changes_its_type_is_refused() -> None:
    history = History(1, 2, storage=Storage(torch.bfloat16))
    history.push(torch.ones(1, 2), [0], 0)
    with pytest.raises(ValueError, match="call clear"):
        history.push(torch.ones(1, 2, dtype=torch.float64), [0], 1)


@settings(max_examples=60, deadline=None)
@given(
    cap=st.integers(0, 4000),
    wanted=st.integers(1, 4),
    sizes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=5), min_size=1, max_size=3),
    is_narrow=st.booleans(),
)
def test_what_is_held_never_exceeds_the_cap(
    cap: int, wanted: int, sizes: list[list[int]], is_narrow: bool
) -> None:
    budget = Budget(cap)
    storage = Storage(torch.bfloat16) if is_narrow else Storage()
    forecaster = Lagrange(order=wanted)
    memories = [Memory(2, forecaster, None, False, storage, budget) for _ in sizes]
    for time in range(6):
        for memory, widths in zip(memories, sizes, strict=True):
            for key, width in enumerate(widths):
                rows = [time % 2] if time > 3 else [0, 1]
                memory.keep(key, torch.ones(len(rows), width), rows, time)
                held = [h.nbytes for m in memories for h in m.histories.values()]
                assert sum(held) <= cap
    need = sum(map(sum, sizes)) * 2 * (2 if is_narrow else 4)
    fits = min(cap // need, wanted)
    for memory, widths in zip(memories, sizes, strict=True):
        anchors = [history.anchors for history in memory.histories.values()]
        assert anchors == [fits] * len(widths) if fits else not anchors


@pytest.mark.parametrize("family", ["pixart", "flux", "sdxl"])
def test_room_for_one_value_makes_a_forecast_a_repetition(family: str) -> None:
    """A sum of one value is that value, so the two caches must agree to the bit."""
    tiny = tiny_pipeline(family)
    options: dict[str, Any] = {"interval": 3, "warmup_steps": 2}
    with enabled(tiny, ABCache(order=1, **options)) as handle:
        repeated = run(tiny)
        one = handle.report().bytes_held
    with enabled(tiny, ABCache(order=2, cache_memory=f"{one * 3 // 2}B", **options)) as handle:
        capped = run(tiny)
        report = handle.report()
    assert torch.equal(capped, repeated)
    assert 0 < report.bytes_held <= one * 3 // 2
    assert any("holds 1 of the 2 values" in note for note in report.notes)


@pytest.mark.parametrize("plugin", [FORA, TaylorSeer, ABCache, CFGCache])
def test_without_room_everything_is_computed_and_the_report_says_so(plugin: Any) -> None:
    tiny = tiny_pipeline("pixart")
    plain = run(tiny)
    with enabled(tiny, plugin(cache_memory="100B", interval=2, warmup_steps=2)) as handle:
        assert torch.equal(run(tiny), plain)
        report = handle.report()
    assert report.fraction == 1
    assert any("cache_memory='100B' holds nothing" in note for note in report.notes)
    reasons = {choice.why for call in report.calls[2:] for choice in call.choices}
    assert reasons <= {"cache memory", "conditional", "final", "warm-up"}


@pytest.mark.parametrize("plugin", [TaylorSeer, ABCache])
def test_bfloat16_halves_what_is_held_and_moves_the_picture_little(plugin: Any) -> None:
    tiny = tiny_pipeline("pixart")
    pictures, held = [], []
    for dtype in (None, "bfloat16"):
        with enabled(tiny, plugin(interval=2, warmup_steps=2, cache_dtype=dtype)) as handle:
            pictures.append(run(tiny))
            held.append(handle.report().bytes_held)
    assert not torch.equal(*pictures)
    torch.testing.assert_close(*pictures, atol=0.02, rtol=0)
    assert held[1] <= 0.51 * held[0]
