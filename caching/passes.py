"""One pass through a denoiser, or through it for some samples of a batch, and the memory that
outlives passes.

A pass computes, skips, or starts undecided ("probe") until the first block's residual is known.
When the samples of a batch then disagree it is left through `Split`, and the engine runs one pass
for those that compute and one for those that skip; the first block is not run again.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from skipstep.caching.base import Choice, Forecaster, Step
from skipstep.caching.history import History, keep_rows
from skipstep.caching.storage import Budget, Storage
from skipstep.caching.tree import map_tensors

__all__ = [
    "Contract",
    "Leave",
    "Memory",
    "NotLearned",
    "Pass",
    "Place",
    "Split",
    "StackContract",
    "Target",
]


Mode = Literal["probe", "compute", "skip"]


class NotLearned(Exception):
    """Say that a module's inputs or outputs do not follow a pattern that could be replayed."""


class Split(BaseException):
    """Leave a pass whose samples disagree; not an Exception, so that no model code catches it on
    the way out.
    """

    def __init__(self, lead: Any) -> None:
        super().__init__("samples disagree")
        self.lead = lead


class Leave(BaseException):
    """Leave the first block from inside when every sample skips it; as Split, no Exception."""


@runtime_checkable
class Target(Protocol):
    """What a span needs to know of a denoiser; the plugins layer's `Denoiser` is one."""

    @property
    def inner(self) -> nn.Module: ...
    @property
    def kind(self) -> str: ...
    @property
    def class_name(self) -> str: ...
    @property
    def stacks(self) -> tuple[tuple[nn.Module, ...], ...]: ...


@dataclass(frozen=True)
class Place:
    """Where a block stands: its stack, its index in it, and whether it is the last one.

    `is_watched` marks a block that runs in every pass, skipped or not; `units` counts the units of
    work in it.
    """

    stack: int
    index: int
    is_last: bool
    is_watched: bool = False
    units: int = 1


@dataclass
class StackContract:
    """Know how one stack of blocks hands its streams on: output `i` of a block is input `carry[i]`
    of the next.

    `parameters` are the block's positional parameters in order. The carry is learned from tensor
    identity between two consecutive blocks; where something is added in between (ControlNet), a
    stream is matched by its unique shape.
    """

    block: str
    parameters: tuple[str, ...]
    carry: dict[int, str] = field(default_factory=dict)
    is_tuple: bool = True

    def as_tuple(self, output: Any) -> tuple[Any, ...]:
        """Return a block's output as a tuple, and remember which form the model uses."""
        self.is_tuple = isinstance(output, tuple)
        return output if isinstance(output, tuple) else (output,)

    def as_output(self, outputs: list[Any]) -> Any:
        """Return outputs in the form the model expects from a block."""
        return tuple(outputs) if self.is_tuple else outputs[0]

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return a block call's arguments by name."""
        return dict(zip(self.parameters, args, strict=False)) | kwargs

    def learn(self, outputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Compare one block's outputs with the next block's inputs."""
        if self.carry:
            return
        by_identity = {
            i: name
            for i, output in enumerate(outputs)
            if isinstance(output, Tensor)
            for name, value in named.items()
            if value is output
        }
        left = {
            n: v
            for n, v in named.items()
            if isinstance(v, Tensor) and n not in by_identity.values()
        }
        for i, output in enumerate(outputs):
            if i in by_identity or not isinstance(output, Tensor):
                continue
            same = [
                n for n, v in left.items() if v.shape == output.shape and v.dtype == output.dtype
            ]
            if len(same) != 1:
                return
            by_identity[i] = same[0]
        self.carry = by_identity

    def main(self) -> tuple[int, str]:
        """Return the carried stream that becomes the picture: the one not named after an encoder or
        a context.
        """
        for i, name in self.carry.items():
            if not name.startswith(("encoder", "context", "txt", "text")):
                return i, name
        return next(iter(self.carry.items()))

    def main_change(self, named: dict[str, Any], outputs: tuple[Any, ...]) -> Tensor | None:
        """Return what a block added to the main stream, or None while the carry is not known."""
        if not self.carry:
            return None
        i, name = self.main()
        return cast(Tensor, outputs[i] - named[name])


@dataclass
class Contract:
    """Keep what was learned about one denoiser, from run to run. `broken` says in words why nothing
    can be skipped.
    """

    stacks: list[StackContract] = field(default_factory=list)
    has_no_delta: bool = False
    clone: bool = False
    broken: str | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class Memory:
    """Hold what one (denoiser, guidance branch) remembers between the steps of one run.

    `shapes` are the nesting and shapes of what units returned. `is_filled` says that every sample
    was computed at least once, `is_input_changed` that the model wrote into its own input,
    `refusal` in words that nothing can be skipped in this run. `era` is the span's when the tensors
    were stored. `notes` are what a span remembers besides values.
    """

    rows: int
    forecaster: Forecaster
    gate_state: Any
    clone: bool
    storage: Storage = field(default_factory=Storage)
    budget: Budget = field(default_factory=lambda: Budget(None))
    histories: dict[Hashable, History] = field(default_factory=dict)
    shapes: dict[Hashable, Any] = field(default_factory=dict)
    per_row: dict[Hashable, int] = field(default_factory=dict)
    notes: dict[tuple[Any, ...], Tensor] = field(default_factory=dict)
    skips: list[int] = field(default_factory=list)
    is_filled: bool = False
    is_input_changed: bool = False
    refusal: str | None = None
    era: int = 0

    def __post_init__(self) -> None:
        self.skips = [0] * self.rows

    @property
    def anchors(self) -> int:
        """Count the values kept of everything: the forecaster's wish, or what the budget allows."""
        return self.budget.fits(self.forecaster.anchors)

    def keep(
        self, key: Hashable, value: Shaped[Tensor, "n ..."], rows: list[int], time: float
    ) -> None:
        """Store a computed tensor; its first dimension is the rows, or a multiple of them (frames
        folded in).
        """
        per_row, rest = divmod(value.shape[0], len(rows)) if value.ndim else (0, 1)
        if rest or not per_row:
            raise NotLearned(
                f"a tensor of shape {tuple(value.shape)} does not divide into {len(rows)} samples"
            )
        history = self.histories.get(key)
        if history is None:
            if self.anchors:
                self.budget.admit(self, self.storage.nbytes(value) * self.rows // len(rows))
            if not self.anchors:
                return
            history = self.histories[key] = History(
                self.rows, self.anchors, clone=self.clone, storage=self.storage
            )
            self.per_row[key] = per_row
        if per_row > 1:
            value = value.reshape(len(rows), per_row, *value.shape[1:])
        history.push(value, rows, time)

    def guess(
        self, key: Hashable, rows: list[int], at: float | list[float]
    ) -> Shaped[Tensor, "n ..."]:
        """Forecast a stored tensor for some rows."""
        value = self.histories[key].forecast(self.forecaster, rows, at)
        return value.flatten(0, 1) if self.per_row[key] > 1 else value

    def note(self, key: tuple[Any, ...], values: Shaped[Tensor, "r ..."], rows: list[int]) -> None:
        """Remember something of some rows, for a span; values[j] belongs to row rows[j]."""
        self.notes[key] = keep_rows(self.notes.get(key), values, rows, self.rows)

    def noted(self, key: tuple[Any, ...], rows: list[int]) -> Shaped[Tensor, "r ..."]:
        """Return what was noted of some rows; it must not be changed in place."""
        values: Tensor = self.notes[key]
        if rows == list(range(self.rows)):
            return values
        return values.index_select(0, torch.tensor(rows, device=values.device))

    def fit(self) -> None:
        """Let go of what is more than `anchors` values of everything."""
        if not self.anchors:
            self.histories.clear()
        for history in self.histories.values():
            history.limit(self.anchors)

    def enter(self, era: int) -> None:
        """Forget the tensors of another era."""
        if era != self.era:
            self.era, self.is_filled = era, False
            self.histories.clear()
            self.notes.clear()
            self.budget.dismiss(self)

    def forget_if_stale(self) -> bool:
        """Forget everything if the model changed a tensor we hold, in place, and keep copies from
        now on; say whether that was so.
        """
        histories = self.histories.values()
        if not (self.is_input_changed or any(history.stale() for history in histories)):
            return False
        self.clone, self.is_input_changed = True, False
        for history in histories:
            history.clone = True
            history.clear()
        return True


@dataclass
class Pass:
    """One call of the denoiser for `rows` of the batch. `work` counts the units (blocks, modules)
    run, times rows; `spared` how often the unit at a place was replaced. `errors` are those of the
    forecast at the block that checks it, one per row.
    """

    mode: Mode
    step: Step
    rows: list[int]
    memory: Memory
    contract: Contract
    decide: Callable[["Pass", Tensor, Any], None] | None = None
    lead: Any = None
    watches_first_block: bool = False
    signal: Tensor | None = None
    feature: Tensor | None = None
    choices: list[Choice] = field(default_factory=list)
    trace: dict[Hashable, Any] = field(default_factory=dict)
    work: float = 0.0
    at: list[float] | None = None
    spared: dict[Hashable, float] = field(default_factory=dict)
    errors: list[float] | None = None

    def run(
        self, call_next: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one unit of the model and count it."""
        self.work += len(self.rows)
        return call_next(*args, **kwargs)

    def spare(self, place: Hashable, share: float = 1.0) -> None:
        """Count a unit that did not run, or this share of one."""
        self.spared[place] = self.spared.get(place, 0.0) + share

    def count_part(self, place: Hashable, share: float) -> None:
        """Count a unit of which only this share ran."""
        self.work += len(self.rows) * share
        self.spare(place, 1 - share)

    def decide_on(self, signal: Tensor | None, lead: Any) -> Mode:
        """Decide what follows the first block; without a signal yet (nothing learned) everything is
        computed. Return the mode the pass is in now.

        Raises Split when the samples disagree; `lead`, the first block's output, is then not
        computed again.
        """
        self.signal = signal
        if signal is None or self.decide is None:
            self.mode = "compute"
        else:
            self.decide(self, signal, lead)
        return self.mode

    def give_up(self, reason: str) -> None:
        """Note that this denoiser cannot be cached with this span, in words; it is computed from
        now on.
        """
        self.contract.broken = f"contract not learned: {reason}"

    def keep(self, key: Hashable, value: Tensor) -> None:
        """Store what a unit computed."""
        try:
            self.memory.keep(key, value, self.rows, float(self.step.index))
        # A history refuses a second value at one time: the unit ran twice in this pass.
        except (NotLearned, ValueError) as error:
            self.give_up(str(error))

    def has(self, key: Hashable) -> bool:
        """Say whether anything was ever stored under `key`."""
        return key in self.memory.histories

    def age(self, key: Hashable) -> float:
        """Return how many steps ago the unit was last computed, for the row that waits longest."""
        history = self.memory.histories[key]
        return self.step.index - min(history.times(row)[0] for row in self.rows)

    def guess(self, key: Hashable) -> Tensor:
        """Forecast what the unit would have computed."""
        return self.memory.guess(key, self.rows, self.at or float(self.step.index))

    def remember_shape(self, key: Hashable, output: Any) -> None:
        """Note the nesting and shapes of a unit's output, without holding it."""
        if key in self.memory.shapes:
            return
        rows = len(self.rows)

        def empty(value: Tensor) -> Tensor:
            divides = value.ndim > 0 and value.shape[0] % rows == 0
            shape = (value.shape[0] // rows, *value.shape[1:]) if divides else tuple(value.shape)
            return value.new_zeros(()).expand(shape)

        self.memory.shapes[key] = map_tensors(output, empty)

    def knows_shape(self, key: Hashable) -> bool:
        """Say whether the unit's output was ever seen."""
        return key in self.memory.shapes

    def placeholder(self, key: Hashable) -> Any:
        """Return zeros in the nesting and shape of a unit's output; they take no memory."""
        rows = len(self.rows)

        def repeat(empty: Tensor) -> Tensor:
            return (
                empty[:1].expand(rows * empty.shape[0], *empty.shape[1:]) if empty.ndim else empty
            )

        return map_tensors(self.memory.shapes[key], repeat)
