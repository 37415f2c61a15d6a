"""A cache is a gate (when to skip) x a forecaster (what stands in) x a span (of what).

The three abstract classes below and the plain records that pass between them and the engine.
Everything is per sample: a gate answers one `Choice` per row of the batch, so a picture does not
depend on its batch neighbours.

One denoiser call, as the engine runs it:
    choices = gate.decide(state, step, signal)      every step, also in warm-up, all rows
    rows that compute run the model, the others get history.forecast(forecaster, rows, at)
    gate.observe(state, Seen(step, rows, ...))      the rows that were computed, forced or not
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Literal, TypeVar

import pydantic
import torch
from jaxtyping import Shaped
from pydantic import AfterValidator, ConfigDict, Field
from torch import Tensor, nn

from skipstep.caching.storage import Storage, parse_bytes

if TYPE_CHECKING:
    from skipstep.caching.passes import Pass, Target

__all__ = [
    "CachePlugin",
    "Choice",
    "FeatureForecaster",
    "FinalSteps",
    "Forecaster",
    "Gate",
    "LooksAt",
    "MaxSkips",
    "Parts",
    "Seen",
    "Span",
    "Step",
    "VerifyingGate",
    "WarmupSteps",
    "decides_inside",
    "front_of",
]

LooksAt = Literal["step", "input", "modulated", "first_block"]


@dataclass(frozen=True, slots=True)
class Step:
    """Name a position in one run: step `index` (from 0, in execution order) of `count`.

    `noise` is (a, b) where the denoiser's input is a x_0 + b eps. It is looked up only for a gate
    that `needs_noise`, and None where the scheduler does not tell.
    """

    index: int
    count: int
    noise: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """Say what one row does at one step and why.

    `why` is one short phrase ("first", "warm-up", "final", "limit", "interval", "schedule",
    "changed", "small change", "no history", "not finite", "calibration", "shape", "aliased");
    `value` and `threshold` are the two numbers that were compared. `at` is the time the forecast is
    for, where the gate knows better than the step's index.
    """

    compute: bool
    why: str
    value: float | None = None
    threshold: float | None = None
    at: float | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """Carry what a gate may learn once some rows were computed.

    Entry r of each tensor belongs to batch row `rows[r]`. `signal` is what the gate looked at,
    `output` the denoiser's output, `feature` the span's cached tensor (main stream).
    """

    step: Step
    rows: list[int]
    signal: Shaped[Tensor, "r ..."] | None
    output: Shaped[Tensor, "r ..."]
    feature: Shaped[Tensor, "r ..."] | None = None


State = TypeVar("State")


class Gate(ABC, Generic[State]):
    """Decide per row and step whether to compute.

    Subclasses are frozen pydantic dataclasses with a `type` tag. The state is created once per
    (run, module, guidance branch) and is the only thing that changes. `learns` says that a gate
    which looks at the step alone still decides by what was computed before.
    """

    type: str
    looks_at: ClassVar[LooksAt]
    needs_noise: ClassVar[bool] = False
    learns: ClassVar[bool] = False

    @abstractmethod
    def init(self, rows: int) -> State:
        """Return the empty state of a run with `rows` samples in the batch."""

    @abstractmethod
    def decide(
        self, state: State, step: Step, signal: Shaped[Tensor, "b ..."] | None
    ) -> list[Choice]:
        """Return one choice per row.

        Called at every step, also where the engine computes anyway, because accumulators must go
        on. `signal` holds all rows: the denoiser's input (`looks_at` "input"), what the first
        block's attention receives ("modulated"), the residual of the first block, or blocks, which
        is not changed afterwards ("first_block"), or None ("step").
        """

    @abstractmethod
    def observe(self, state: State, seen: Seen) -> None:
        """Take note of rows that were computed, also when the engine forced them."""


class VerifyingGate(Gate[State]):
    """Decide by how well the last forecast fitted: the span runs one block to check it."""

    @abstractmethod
    def verify(self, state: State, rows: list[int], errors: list[float]) -> None:
        """Take note of rows that were skipped: the relative L1 distance of the checked block's
        forecast from what it did.
        """


def decides_inside(gate: Gate[Any]) -> bool:
    """Tell whether this gate can only decide once the denoiser has begun to run."""
    return gate.looks_at in ("modulated", "first_block")


def front_of(gate: Gate[Any]) -> int:
    """Return how many blocks run before this gate decides; 0 when it looks at none of them."""
    return int(getattr(gate, "front", 1)) if gate.looks_at == "first_block" else 0


class Forecaster(ABC):
    """Predict a feature from its last computed values, linearly: one weight per anchor.

    Subclasses are frozen pydantic dataclasses with a `type` tag.
    """

    type: str

    @property
    @abstractmethod
    def anchors(self) -> int:
        """Tell how many computed values the forecast wants."""

    @abstractmethod
    def weights(self, times: Sequence[float], at: float) -> list[float]:
        """Return one weight per time so that sum_j w_j F(times[j]) forecasts F(at).

        `times` are the true times of the anchors, newest first, distinct and unevenly spaced;
        between one and `anchors` of them. Fewer anchors than wanted lower the order.
        """

    def for_run(self, count: int, shape: tuple[int, ...]) -> "Forecaster":
        """Return this forecaster as it is in one run; most depend on neither and return themselves.

        `count` is the number of steps, 0 where nobody knows it. `shape` is that of the denoiser's
        main input without the batch, empty for a list of inputs.
        """
        return self

    def why_not(self, shape: tuple[int, ...]) -> str | None:
        """Return why the main feature, of `shape` without the batch, has no forecast, or None."""
        return None


class FeatureForecaster(Forecaster):
    """Predict a feature by more than one weight per anchor: by looking at it, or part by part.

    `weights` is then the linear forecast it falls back to or starts from.
    """

    @abstractmethod
    def forecast(
        self, times: Sequence[float], values: Sequence[Shaped[Tensor, "r ..."]], at: float
    ) -> Shaped[Tensor, "r ..."]:
        """Return F(at) for rows that share their anchors' times, as a new tensor.

        values[j] is the feature at times[j], newest first. Rows are forecast one by one: a row's
        result does not depend on the others.
        """


class Span(ABC):
    """Name what is skipped and replaced, and where in the model that is.

    Subclasses are frozen pydantic dataclasses with a `type` tag; their state is in a `Pass`.
    `reaches_into_blocks` says that its places are parts of blocks, which compiled blocks inline;
    `decides` that what it computes on a skip depends on the features.
    """

    type: str
    reaches_into_blocks: ClassVar[bool] = False
    decides: ClassVar[bool] = False

    @abstractmethod
    def why_not(self, target: "Target", gate: Gate[Any]) -> str | None:
        """Return why this denoiser has no such span under this gate, in words, or None."""

    @abstractmethod
    def places(self, target: "Target", gate: Gate[Any]) -> list[tuple[nn.Module, Any]]:
        """Return the modules to stand in for, each with its place; empty for the whole denoiser."""

    @abstractmethod
    def full_work(self, target: "Target") -> float:
        """Count the units (blocks, modules) an uncached call runs per sample."""

    def era(self, step: Step) -> int:
        """Return a number that changes when what was stored before cannot stand in any more."""
        return 0

    @abstractmethod
    def visit(
        self,
        place: Any,
        pass_: "Pass",
        call_next: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Return what the module at `place` returns in this pass: computed or forecast."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Hold the three choices a cache is the product of."""

    gate: Gate[Any]
    forecaster: Forecaster
    span: Span


WarmupSteps = Annotated[int, Field(ge=1, description="First steps that are always computed.")]
FinalSteps = Annotated[int, Field(ge=0, description="Last steps that are always computed.")]
MaxSkips = Annotated[
    int | None,
    Field(ge=1, description="Most skips in a row for one sample; None means no limit."),
]


def _amount(text: str) -> str:
    parse_bytes(text)
    return text


Amount = Annotated[str, AfterValidator(_amount)]


@pydantic.dataclasses.dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class CachePlugin(ABC):
    """Hold the options every cache has; a subclass adds its own and says what parts they make.

    The engine applies the common options above any gate: the first `warmup_steps` and the last
    `final_steps` steps are computed, and no row skips more than `max_skips` times in a row. What is
    held can be capped, shortened to fewer bits, or moved to the host.
    """

    kind: ClassVar[str] = "cache"
    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""

    warmup_steps: WarmupSteps = 3
    final_steps: FinalSteps = 1
    max_skips: MaxSkips = None
    cache_memory: Annotated[
        Amount | None,
        Field(
            description="Most that may be held per denoiser, such as '2GB' or '512MiB'; where the "
            "forecaster wants more, it gets fewer values. None means no limit."
        ),
    ] = None
    cache_dtype: Annotated[
        Literal["bfloat16", "float16", "float32"] | None,
        Field(description="Type in which values are held; None is the model's."),
    ] = None
    cache_device: Annotated[
        Literal["cpu"] | None,
        Field(description="Device on which values are held; None is the model's."),
    ] = None

    def storage(self) -> Storage:
        """Return how values are held."""
        dtype = None if self.cache_dtype is None else getattr(torch, self.cache_dtype)
        return Storage(dtype, None if self.cache_device is None else torch.device("cpu"))

    @abstractmethod
    def parts(self) -> Parts:
        """Return the gate, forecaster and span these options stand for."""

    def made_for(self) -> dict[str, Any] | None:
        """Return the fingerprint of what a calibrated cache was made for, or None."""
        return None

    def only_steps(self) -> int | None:
        """Return the one number of steps this cache runs with, or None where any will do."""
        return None

    def refuses_others(self) -> bool:
        """Tell whether a pipeline unlike `made_for` is refused; else the report says so."""
        return False

    def why_not(self, profile: Any) -> str | None:
        """Return why this cache cannot serve a pipeline of that profile, or None when it can."""
        return None
