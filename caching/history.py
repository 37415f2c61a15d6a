"""The last computed values of a feature, per row of the batch, and forecasts from them.

A ring of `anchors` slots, each one tensor [b, ...]. While all rows are computed together a push
keeps a reference to the model's tensor and copies nothing. Once rows part ways, each row's value is
written into that row's own oldest slot, in a buffer that belongs to the history. Rows therefore
have their own times and their own order of slots.

Keeping a reference is only right while nobody changes the tensor. Every slot remembers torch's
version counter, and `stale` tells when one moved. A kernel that writes behind torch's back does not
move it and cannot be detected here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor

from skipstep.caching.base import FeatureForecaster, Forecaster
from skipstep.caching.storage import Storage
from skipstep.kernels.weighted_sum import weighted_sum

__all__ = ["History", "keep_rows"]


def keep_rows(
    kept: Shaped[Tensor, "b ..."] | None,
    values: Shaped[Tensor, "r ..."],
    rows: Sequence[int],
    count: int,
) -> Shaped[Tensor, "b ..."]:
    """Return `kept` with row rows[j] replaced by values[j], as a new tensor.

    Rows never seen are zero. When `rows` are all `count` rows in order, `values` itself is returned
    and nothing is copied.
    """
    if list(rows) == list(range(count)):
        return values
    if kept is None:
        kept = values.new_zeros((count, *values.shape[1:]))
    return kept.index_copy(0, torch.tensor(list(rows), device=values.device), values)


@dataclass(slots=True)
class _Slot:
    """One anchor of all rows.

    `owned` says that no one else holds the buffer, `version` what torch counted at the push.
    """

    values: Tensor
    owned: bool
    version: int | None


def _version(x: Tensor) -> int | None:
    return None if x.is_inference() else x._version


class History:
    """Keep up to `anchors` computed values for each of `rows` samples.

    Args:
        rows: samples in the batch.
        anchors: values to keep per row (`Forecaster.anchors`).
        clone: copy what is pushed and what is handed out, for models that change tensors in place.
        storage: the type and the device in which anchors are held; forecasts come in the model's.
    """

    def __init__(
        self, rows: int, anchors: int, *, clone: bool = False, storage: Storage | None = None
    ) -> None:
        if rows < 1 or anchors < 1:
            raise ValueError(
                f"History was given rows={rows}, anchors={anchors}: both must be at least 1"
            )
        self.rows = rows
        self.anchors = anchors
        self.clone = clone
        self.storage = storage or Storage()
        self._model: tuple[torch.dtype, torch.device] | None = None
        self._everyone = list(range(rows))
        self._slots: list[_Slot | None] = [None] * anchors
        # Per row: slot numbers and their times, newest first.
        self._order: list[list[int]] = [[] for _ in range(rows)]
        self._times: list[list[float]] = [[] for _ in range(rows)]

    def push(self, values: Shaped[Tensor, "r ..."], rows: Sequence[int], time: float | int) -> None:
        """Store values[j] as the newest anchor of row rows[j], taken at `time`.

        Raises ValueError for rows that repeat or do not exist, for a shape or type unlike what is
        held, and for a time the row already has (two anchors at one time have no slope).
        """
        rows = list(rows)
        if not self.storage.is_plain:
            if self._model not in (None, (values.dtype, values.device)):
                raise ValueError(
                    f"History.push was given {values.dtype} on {values.device} after "
                    f"{self._model}: call clear() when the run changes"
                )
            self._model = values.dtype, values.device
            values = self.storage.pack(values.detach())
        if rows == self._everyone and self._push_whole(values, float(time)):
            return
        if len(set(rows)) != len(rows) or any(not 0 <= row < self.rows for row in rows):
            raise ValueError(
                f"History.push was given rows {rows}: "
                f"allowed are distinct rows of 0..{self.rows - 1}"
            )
        if values.ndim == 0 or values.shape[0] != len(rows):
            raise ValueError(
                f"History.push was given values of shape {tuple(values.shape)} for {len(rows)} "
                "rows: the first dimension must be one entry per row"
            )
        held = next((slot.values for slot in self._slots if slot is not None), None)
        if held is not None and (
            values.shape[1:] != held.shape[1:]
            or values.dtype != held.dtype
            or values.device != held.device
        ):
            raise ValueError(
                f"History.push was given {values.dtype} {tuple(values.shape)} on {values.device} "
                f"but holds {held.dtype} {tuple(held.shape)} on {held.device}: "
                "call clear() when the run changes"
            )
        for row in rows:
            if time in self._times[row]:
                raise ValueError(
                    f"History.push was given time {time} again for row {row}: "
                    f"it already holds {self._times[row]}"
                )
        targets = [self._target(row) for row in rows]
        if rows == list(range(self.rows)) and len(set(targets)) == 1:
            copy = self.clone or values.is_inference()
            kept = values.detach().clone() if copy else values.detach()
            self._slots[targets[0]] = _Slot(kept, owned=copy, version=_version(kept))
        else:
            for target in sorted(set(targets)):
                entries = [j for j, t in enumerate(targets) if t == target]
                self._write(target, values.detach(), entries, [rows[j] for j in entries])
        for row, target in zip(rows, targets, strict=True):
            self._order[row] = [target, *self._order[row]][: self.anchors]
            self._times[row] = [float(time), *self._times[row]][: self.anchors]

    def forecast(
        self, forecaster: Forecaster, rows: Sequence[int], at: float | Sequence[float]
    ) -> Shaped[Tensor, "r ..."]:
        """Return the forecast of `rows` at time `at`, one for all or one each; every row uses its
        own anchors.

        When all rows are asked for and the forecast is one anchor with weight 1, the stored tensor
        itself is returned (unless `clone`): the caller must not change it. Raises ValueError for a
        row without anchors.
        """
        rows = list(rows)
        ats = list(at) if isinstance(at, Sequence) else [float(at)] * len(rows)
        if isinstance(forecaster, FeatureForecaster):
            return self._forecast_features(forecaster, rows, ats)
        weights: dict[tuple[tuple[float, ...], float], list[float]] = {}
        columns: list[dict[int, float]] = []  # per asked row: slot -> weight, zeros left out
        for row, then in zip(rows, ats, strict=True):
            times = self._some_times(row)
            if (times, then) not in weights:
                weights[times, then] = forecaster.weights(times, then)
            columns.append(
                {
                    slot: w
                    for slot, w in zip(self._order[row], weights[times, then], strict=True)
                    if w != 0
                }
            )
        used = sorted({slot for column in columns for slot in column}) or [self._order[rows[0]][0]]
        table = [[column.get(slot, 0.0) for column in columns] for slot in used]
        whole = rows == list(range(self.rows))
        tensors = [self._filled(slot).values for slot in used]
        one_for_all = all(column == columns[0] for column in columns)
        if whole and table == [[1.0] * len(rows)]:
            slot = self._filled(used[0])
            values = self._unpacked(slot.values)
            is_ours = self.clone or slot.version is None
            return values.clone() if is_ours and values is slot.values else values
        if not whole:
            index = torch.tensor(rows, device=tensors[0].device)
            tensors = [tensor.index_select(0, index) for tensor in tensors]
        tensors = [self._unpacked(tensor) for tensor in tensors]
        if table == [[1.0] * len(rows)]:
            return tensors[0]
        return weighted_sum(tensors, [line[0] for line in table] if one_for_all else table)

    def ready(self, rows: Sequence[int]) -> list[bool]:
        """Tell for each of `rows` whether it has an anchor to forecast from."""
        return [bool(self._times[row]) for row in rows]

    def times(self, row: int) -> tuple[float, ...]:
        """Return the times of one row's anchors, newest first."""
        return tuple(self._times[row])

    def stale(self) -> bool:
        """Tell whether a stored tensor was changed in place since it was pushed.

        Then the anchors are not what the model computed: compute, and go on with `clone=True`.
        """
        return any(
            slot is not None and slot.version is not None and slot.version != slot.values._version
            for slot in self._slots
        )

    def clear(self) -> None:
        """Forget all anchors."""
        self._model = None
        self._slots = [None] * self.anchors
        self._order = [[] for _ in range(self.rows)]
        self._times = [[] for _ in range(self.rows)]

    def limit(self, anchors: int) -> None:
        """Keep no more than `anchors` values per row from now on; while a row holds more, all are
        forgotten.

        Raises ValueError below 1.
        """
        if anchors < 1:
            raise ValueError(f"History.limit was given {anchors}: at least 1 value is kept")
        if anchors >= self.anchors:
            return
        if any(slot is not None for slot in self._slots[anchors:]):
            self.anchors = anchors
            self.clear()
        self.anchors = anchors
        self._slots = self._slots[:anchors]

    def storages(self) -> dict[int, int]:
        """Return address -> bytes of every storage kept alive, to join histories that share."""
        storages = [slot.values.untyped_storage() for slot in self._slots if slot is not None]
        return {storage.data_ptr(): storage.nbytes() for storage in storages}

    @property
    def nbytes(self) -> int:
        """Count the bytes kept alive: a view with its whole storage, a shared storage once."""
        return sum(self.storages().values())

    def _forecast_features(
        self, forecaster: FeatureForecaster, rows: list[int], ats: list[float]
    ) -> Shaped[Tensor, "r ..."]:
        """Forecast in groups of rows that have the same anchors in the same slots."""
        groups: dict[tuple[tuple[float, ...], tuple[int, ...], float], list[int]] = {}
        for place, (row, at) in enumerate(zip(rows, ats, strict=True)):
            alike = (self._some_times(row), tuple(self._order[row]), at)
            groups.setdefault(alike, []).append(place)
        result: Tensor | None = None
        for (times, slots, at), places in groups.items():
            tensors = [self._filled(slot).values for slot in slots]
            asked = [rows[place] for place in places]
            if asked != list(range(self.rows)):
                index = torch.tensor(asked, device=tensors[0].device)
                tensors = [tensor.index_select(0, index) for tensor in tensors]
            tensors = [self._unpacked(tensor) for tensor in tensors]
            result = keep_rows(result, forecaster.forecast(times, tensors, at), places, len(rows))
        if result is None:
            raise ValueError("History.forecast was asked for no rows: ask for at least one")
        return result

    def _unpacked(self, x: Tensor) -> Tensor:
        """Return held values in the model's type, on its device."""
        return x if self._model is None else x.to(dtype=self._model[0], device=self._model[1])

    def _some_times(self, row: int) -> tuple[float, ...]:
        """Return the times of a row that has anchors."""
        if not self._times[row]:
            raise ValueError(
                f"History.forecast was asked for row {row}, which has no anchors: "
                "check ready() first"
            )
        return tuple(self._times[row])

    def _push_whole(self, values: Tensor, time: float) -> bool:
        """Store all rows at once while they agree on their slots; say whether that was possible.

        What is refused, copied or owned by single rows takes the general way.
        """
        order, times = self._order[0], self._times[0]
        held = self._filled(order[0]).values if order else None
        if (
            self.clone
            or time in times
            or values.is_inference()
            # Rows that were pushed together share one list, so that this compares no entries.
            or self._order.count(order) < self.rows
            or self._times.count(times) < self.rows
        ):
            return False
        if held is None:
            if values.ndim == 0 or values.shape[0] != self.rows:
                return False
        elif (
            held.shape != values.shape or held.dtype != values.dtype or held.device != values.device
        ):
            return False
        target = order[-1] if len(order) == self.anchors else len(order)
        kept = values.detach() if values.requires_grad else values
        self._slots[target] = _Slot(kept, owned=False, version=kept._version)
        self._order = [[target, *order][: self.anchors]] * self.rows
        self._times = [[time, *times][: self.anchors]] * self.rows
        return True

    def _filled(self, number: int) -> _Slot:
        slot = self._slots[number]
        if slot is None:
            raise RuntimeError(f"slot {number} is empty although a row points to it")
        return slot

    def _target(self, row: int) -> int:
        """Return the slot a row writes next: its first unused one, else its oldest."""
        order = self._order[row]
        if len(order) == self.anchors:
            return order[-1]
        return next(number for number in range(self.anchors) if number not in order)

    def _write(self, target: int, values: Tensor, entries: list[int], rows: list[int]) -> None:
        """Copy values[entries] into `rows` of one slot, in a buffer of our own."""
        slot = self._slots[target]
        if slot is None:
            buffer = values.new_zeros((self.rows, *values.shape[1:]))
        else:
            buffer = slot.values if slot.owned else slot.values.clone()
        index = torch.tensor(rows, device=values.device)
        if len(entries) < values.shape[0]:
            values = values.index_select(0, torch.tensor(entries, device=values.device))
        buffer.index_copy_(0, index, values)
        self._slots[target] = _Slot(buffer, owned=True, version=_version(buffer))
