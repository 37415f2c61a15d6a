"""History: equality with a naive per-row store, references, in-place changes, memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from skipstep.caching.base import FeatureForecaster, Forecaster
from skipstep.caching.history import History, keep_rows

torch.set_num_threads(1)


@dataclass(frozen=True)
class Harmonic(Forecaster):
    """Weight anchor j by something that depends on every time, so that a mixed-up order shows."""

    wanted: int = 2
    type: str = "harmonic"

    @property
    def anchors(self) -> int:
        return self.wanted

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        return [(j + 1) / (1 + abs(at - t)) for j, t in enumerate(times)]


@dataclass(frozen=True)
class Newest(Forecaster):
    type: str = "newest"

    @property
    def anchors(self) -> int:
        return 1

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        return [1.0] + [0.0] * (len(times) - 1)


class NaiveHistory:
    """One python list of (time, value) per row, newest first."""

    def __init__(self, rows: int, anchors: int) -> None:
        self.anchors = anchors
        self.held: list[list[tuple[float, Tensor]]] = [[] for _ in range(rows)]

    def push(self, values: Tensor, rows: list[int], time: float) -> None:
        for value, row in zip(values, rows, strict=True):
            self.held[row] = [(time, value.clone()), *self.held[row]][: self.anchors]

    def forecast(self, forecaster: Forecaster, rows: list[int], at: float) -> Tensor:
        out = []
        for row in rows:
            weights = forecaster.weights([t for t, _ in self.held[row]], at)
            terms = zip(weights, self.held[row], strict=True)
            out.append(sum((w * value for w, (_, value) in terms), torch.zeros(3)))
        return torch.stack(out)


@st.composite
def walks(draw: st.DrawFn) -> tuple[int, int, bool, list[tuple[list[int], float]]]:
    count = draw(st.integers(1, 4))
    subset = st.lists(st.integers(0, count - 1), min_size=1, max_size=count, unique=True)
    everyone = st.just(list(range(count)))
    gaps = st.floats(0.25, 5, allow_nan=False)
    pushes = draw(st.lists(st.tuples(st.one_of(subset, everyone), gaps), min_size=1, max_size=12))
    return count, draw(st.integers(1, 4)), draw(st.booleans()), pushes


@settings(max_examples=150, deadline=None)
@given(walk=walks(), data=st.data())
def test_equals_a_naive_store_per_row(
    walk: tuple[int, int, bool, list[tuple[list[int], float]]], data: st.DataObject
) -> None:
    count, anchors, clone, pushes = walk
    history, naive = History(count, anchors, clone=clone), NaiveHistory(count, anchors)
    generator = torch.Generator().manual_seed(0)
    time = 0.0
    for rows, gap in pushes:
        time += gap
        values = torch.randn(len(rows), 3, generator=generator)
        before = values.clone()
        history.push(values, rows, time)
        naive.push(values, rows, time)
        assert torch.equal(values, before)
        assert not history.stale()
        assert history.ready(range(count)) == [bool(held) for held in naive.held]
        known = [row for row in range(count) if naive.held[row]]
        query = data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=4))
        for asked in (query, known):
            for forecaster in (Harmonic(anchors), Newest()):
                torch.testing.assert_close(
                    history.forecast(forecaster, asked, time + 1),
                    naive.forecast(forecaster, asked, time + 1),
                    rtol=1e-5,
                    atol=1e-6,
                )
        for row in known:
            assert history.times(row) == tuple(t for t, _ in naive.held[row])


def test_a_push_never_writes_into_the_models_tensors() -> None:
    history = History(2, 2)
    pushed = [torch.randn(2, 3) for _ in range(2)]
    kept = [x.clone() for x in pushed]
    for time, x in enumerate(pushed):
        history.push(x, [0, 1], time)
    history.push(torch.randn(1, 3), [1], 2)
    history.push(torch.randn(1, 3), [0], 3)
    history.push(torch.randn(2, 3), [0, 1], 4)
    for x, before in zip(pushed, kept, strict=True):
        assert torch.equal(x, before)


def test_uniform_rows_are_kept_by_reference_and_reuse_returns_the_very_tensor() -> None:
    history, x = History(2, 1), torch.randn(2, 3)
    history.push(x, [0, 1], 0)
    assert history.forecast(Newest(), [0, 1], 1).data_ptr() == x.data_ptr()
    assert history.forecast(Newest(), [1, 0], 1).data_ptr() != x.data_ptr()


def test_with_clone_neither_side_shares_memory() -> None:
    history, x = History(2, 1, clone=True), torch.randn(2, 3)
    before = x.clone()
    history.push(x, [0, 1], 0)
    x.zero_()
    assert not history.stale()
    history.forecast(Newest(), [0, 1], 1).zero_()
    assert torch.equal(history.forecast(Newest(), [0, 1], 1), before)


@pytest.mark.parametrize("through_view", [False, True])
def test_an_in_place_change_of_a_kept_tensor_is_noticed(through_view: bool) -> None:
    history, x = History(2, 2), torch.randn(2, 3)
    history.push(x, [0, 1], 0)
    history.push(torch.randn(2, 3), [0, 1], 1)
    assert not history.stale()
    (x[:, :1] if through_view else x).add_(1)
    assert history.stale()
    history.clear()
    assert not history.stale() and history.ready([0, 1]) == [False, False]


def test_a_change_of_what_a_forecast_handed_out_is_noticed() -> None:
    history = History(1, 1)
    history.push(torch.randn(1, 3), [0], 0)
    history.forecast(Newest(), [0], 1).mul_(2)
    assert history.stale()


def test_own_writes_of_diverging_rows_are_not_stale() -> None:
    history = History(2, 1)
    history.push(torch.randn(2, 3), [0, 1], 0)
    for time in range(1, 4):
        history.push(torch.randn(1, 3), [time % 2], time)
        assert not history.stale()


def test_inference_tensors_are_copied_both_ways() -> None:
    with torch.inference_mode():
        history, x = History(2, 1), torch.randn(2, 3)
        before = x.clone()
        history.push(x, [0, 1], 0)
        x.zero_()
        history.forecast(Newest(), [0, 1], 1).zero_()
        assert torch.equal(history.forecast(Newest(), [0, 1], 1), before)
        history.push(torch.ones(1, 3), [1], 1)
        assert history.forecast(Newest(), [1], 2).tolist() == [[1.0, 1.0, 1.0]]


def test_nbytes_counts_each_storage_once_and_views_whole() -> None:
    history = History(2, 3)
    whole = torch.zeros(4, 10)
    history.push(whole[:2], [0, 1], 0)
    history.push(whole[2:], [0, 1], 1)
    other = torch.zeros(2, 10)
    history.push(other, [0, 1], 2)
    distinct = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in (whole, other)}
    assert history.nbytes == sum(storage.nbytes() for storage in distinct.values())
    assert set(history.storages()) == set(distinct)


def test_history_frees_what_the_ring_drops() -> None:
    history = History(1, 2)
    for time in range(9):
        history.push(torch.zeros(1, 256), [0], time)
    assert history.nbytes == 2 * 256 * 4


def test_bf16_anchors_keep_their_type() -> None:
    history = History(2, 2)
    for time in range(2):
        history.push(torch.full((2, 3), time, dtype=torch.bfloat16), [0, 1], time)
    assert history.forecast(Harmonic(2), [0, 1], 2).dtype == torch.bfloat16


def test_errors_say_what_to_do() -> None:
    history = History(2, 2)
    with pytest.raises(ValueError, match="check ready"):
        history.forecast(Newest(), [0], 1)
    history.push(torch.zeros(2, 3), [0, 1], 0)
    with pytest.raises(ValueError, match=r"call clear\(\)"):
        history.push(torch.zeros(2, 4), [0, 1], 1)
    with pytest.raises(ValueError, match="distinct rows of 0..1"):
        history.push(torch.zeros(2, 3), [0, 0], 1)
    with pytest.raises(ValueError, match="time 0 again for row 0"):
        history.push(torch.zeros(2, 3), [0, 1], 0)
    with pytest.raises(ValueError, match="one entry per row"):
        history.push(torch.zeros(2, 3), [0], 1)
    with pytest.raises(ValueError, match="at least 1"):
        History(0, 1)


def test_keep_rows_changes_nothing_in_place() -> None:
    kept = keep_rows(None, torch.ones(1, 2), [1], 3)
    assert kept.tolist() == [[0, 0], [1, 1], [0, 0]]
    again = keep_rows(kept, torch.full((1, 2), 2.0), [0], 3)
    assert kept.tolist() == [[0, 0], [1, 1], [0, 0]]
    assert again.tolist() == [[2, 2], [1, 1], [0, 0]]
    full = torch.zeros(3, 2)
    assert keep_rows(again, full, [0, 1, 2], 3) is full


@dataclass(frozen=True)
class Largest(FeatureForecaster):
    """Repeat the newest value scaled by its own largest entry: it depends on the data of a row."""

    type: str = "largest"

    @property
    def anchors(self) -> int:
        return 3

    def weights(self, times: Sequence[float], at: float) -> list[float]:
        return [1.0] + [0.0] * (len(times) - 1)

    def forecast(self, times: Sequence[float], values: Sequence[Tensor], at: float) -> Tensor:
        assert all(value.shape[0] == values[0].shape[0] for value in values)
        factors = torch.tensor([at - t for t in times])
        weighted = sum((f * v for f, v in zip(factors, values, strict=True)), torch.zeros(()))
        return weighted * values[0].amax(1, keepdim=True)


@settings(max_examples=40, deadline=None)
@given(
    pushes=st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=1, max_size=8),
    asked=st.permutations([0, 1, 2]),
)
def test_a_forecast_that_looks_at_features_gets_each_rows_own_anchors(
    pushes: list[set[int]], asked: list[int]
) -> None:
    forecaster = Largest()
    history, naive = History(3, 3), NaiveHistory(3, 3)
    for time, computed in enumerate([{0, 1, 2}, *pushes]):
        x = torch.randn(len(computed), 4)
        history.push(x, sorted(computed), time)
        naive.push(x, sorted(computed), time)
    for rows in ([0, 1, 2], list(asked), asked[:1]):
        expected = []
        for row in rows:
            times = [t for t, _ in naive.held[row]]
            values = [v[None] for _, v in naive.held[row]]
            expected.append(forecaster.forecast(times, values, 20.0)[0])
        torch.testing.assert_close(history.forecast(forecaster, rows, 20), torch.stack(expected))


def test_a_forecast_that_looks_at_features_needs_anchors() -> None:
    with pytest.raises(ValueError, match="check ready"):
        History(2, 3).forecast(Largest(), [0], 1)
