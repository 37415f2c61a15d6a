"""How an attention call reaches us: through the model's own processors, for one denoiser call.

Two kinds of processor are in use. One asks diffusers' dispatcher for the attention backend that is
named on it: it is given a backend of ours. The other calls torch's scaled_dot_product_attention: it
becomes an object of a subclass whose `__call__` is the same code with our function in the place of
torch's. Both are set when a denoiser call begins and taken back when it ends, so nothing is left
for another pipeline, a copy or a file to find; `set_attention_backend` would change a switch of the
whole process, and could not be undone.

Inside a compiled block our function is one opaque op, so the graph stays whole; what it does is
decided when it runs. Outside a pipeline's own run it does what the processor would have done.
"""

import contextlib
import functools
import threading
import types
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from diffusers.models.attention_dispatch import (
    AttentionBackendName,
    _AttentionBackendRegistry,
    dispatch_attention_fn,
)
from jaxtyping import Float
from torch import Tensor, nn

from skipstep.caching.spans.modules import kind_of

__all__ = ["Listener", "Point", "listening", "points_in", "standing_in"]

ATTRIBUTE = "_attention_backend"
FUNCTION = "scaled_dot_product_attention"
PREFIX = "skipstep"


class Listener(Protocol):
    """What answers attention calls while a denoiser runs."""

    def attend(
        self,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b g m d"],
        v: Float[Tensor, "b g m d"],
        mask: Tensor | None,
        scale: float | None,
        is_plain: bool,
        dense: Callable[[], Tensor],
    ) -> Tensor:
        """Return the output [b, h, n, d]; `dense` calls the processor's own attention for it.

        `is_plain` says that nothing is causal or dropped out.
        """


_LISTENER: ContextVar[Listener | None] = ContextVar("skipstep_attention", default=None)


@contextlib.contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Send the attention calls of this thread to `listener`."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def listener_now() -> Listener | None:
    """Return who answers attention calls in this thread."""
    return _LISTENER.get()


@dataclass(frozen=True, eq=False)
class Point:
    """One self-attention module and how its processor calls attention."""

    path: str
    module: nn.Module
    processor: Any
    is_dispatched: bool


def points_in(denoiser: nn.Module) -> tuple[list[Point], list[str]]:
    """Return the self-attention modules of a denoiser, and the classes of processors among them
    that call attention in a way we do not know.
    """
    points, unknown = [], []
    for path, module in denoiser.named_modules():
        processor = getattr(module, "processor", None)
        if processor is None or not callable(processor) or _is_cross(path, module):
            continue
        if hasattr(processor, ATTRIBUTE):
            points.append(Point(path, module, processor, True))
        elif _calls_torch(type(processor)):
            points.append(Point(path, module, processor, False))
        else:
            unknown.append(type(processor).__name__)
    return points, sorted(set(unknown))


def _is_cross(path: str, module: nn.Module) -> bool:
    said = getattr(module, "is_cross_attention", None)
    if isinstance(said, bool):
        return said
    return kind_of(path.rpartition(".")[2], module) == "cross_attention"


def _calls_torch(cls: type) -> bool:
    call = cls.__call__
    if not isinstance(call, types.FunctionType):
        return False
    functional = call.__globals__.get("F")
    return functional is torch.nn.functional and FUNCTION in call.__code__.co_names


_CLASSES: dict[type, type] = {}
# What is on a processor now: how many denoiser calls hold it, and what it was before.
_HELD: dict[int, tuple[int, Any]] = {}
_LOCK = threading.Lock()
_ABSENT = object()


@contextlib.contextmanager
def standing_in(points: list[Point]) -> Iterator[None]:
    """Have every processor call us while the block runs; the last to leave puts it back."""
    taken: list[Point] = []
    try:
        for point in points:
            _hold(point)
            taken.append(point)
        yield
    finally:
        for point in reversed(taken):
            _release(point)


def _hold(point: Point) -> None:
    processor, key = point.processor, id(point.processor)
    with _LOCK:
        if key in _HELD:
            _HELD[key] = _HELD[key][0] + 1, _HELD[key][1]
        elif point.is_dispatched:
            before = vars(processor).get(ATTRIBUTE, _ABSENT)
            _HELD[key] = 1, before
            setattr(processor, ATTRIBUTE, backend_over(getattr(processor, ATTRIBUTE)))
        else:
            _HELD[key] = 1, type(processor)
            processor.__class__ = listening_class(type(processor))


def _release(point: Point) -> None:
    processor, key = point.processor, id(point.processor)
    with _LOCK:
        count, before = _HELD[key]
        if count > 1:
            _HELD[key] = count - 1, before
            return
        del _HELD[key]
        if not point.is_dispatched:
            processor.__class__ = before
        elif before is _ABSENT:
            delattr(processor, ATTRIBUTE)
        else:
            setattr(processor, ATTRIBUTE, before)


def listening_class(cls: type) -> type:
    """Return a subclass of a processor that calls our attention where `cls` calls torch's; always
    the same one, for what is compiled is compiled for a class.
    """
    if cls not in _CLASSES:
        _CLASSES[cls] = _make_listening_class(cls)
    return _CLASSES[cls]


def _make_listening_class(cls: type) -> type:
    functional = types.ModuleType("skipstep_functional")
    vars(functional).update(vars(torch.nn.functional))
    setattr(functional, FUNCTION, attention)
    call = cls.__call__
    # With a module's name in it, torch.compile would look names up in that module instead.
    names = {name: value for name, value in call.__globals__.items() if name != "__name__"}
    ours = types.FunctionType(
        call.__code__,
        {**names, "F": functional},
        call.__name__,
        call.__defaults__,
        call.__closure__,
    )
    ours.__kwdefaults__ = call.__kwdefaults__
    return type(cls.__name__, (cls,), {"__call__": ours, "__module__": cls.__module__})


@functools.cache
def backend_over(before: AttentionBackendName | None) -> AttentionBackendName:
    """Return the backend of ours that does what `before` does wherever we do nothing."""
    name = f"{PREFIX}_over_{before.value}" if before is not None else PREFIX

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
        return_lse: bool = False,
        _parallel_config: Any = None,
    ) -> Tensor:
        asked = Asked(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        if torch.compiler.is_compiling():
            found: Tensor = attention_op(*asked, True, "" if before is None else before.value)
            return found
        return through_dispatcher(asked, before)

    member = _member(name)
    _AttentionBackendRegistry.register(member)(attend)
    return member


def _member(value: str) -> AttentionBackendName:
    """Add a member to diffusers' closed list of backends; it stays, and does no harm."""
    names = AttentionBackendName
    if value in names._value2member_map_:
        return names(value)
    member = str.__new__(names, value)
    member._name_, member._value_ = value.upper(), value
    type.__setattr__(names, member._name_, member)
    names._member_map_[member._name_] = member
    names._value2member_map_[value] = member
    names._member_names_.append(member._name_)
    return member


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Take the arguments of torch's scaled_dot_product_attention, [b, h, n, d], and its place."""
    asked = Asked(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    if torch.compiler.is_compiling():
        found: Tensor = attention_op(*asked, False, "")
        return found
    return through_torch(asked)


class Asked(NamedTuple):
    """What a processor asks for: the arguments of torch's scaled_dot_product_attention."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    dropout_p: float
    is_causal: bool
    scale: float | None
    enable_gqa: bool


def through_dispatcher(asked: Asked, before: AttentionBackendName | None) -> Tensor:
    """Serve a call of the dispatcher, [b, n, h, d]."""

    def dense() -> Tensor:
        found: Tensor = dispatch_attention_fn(**asked._asdict(), backend=before)
        return found

    listener = listener_now()
    if listener is None:
        return dense()
    q, k, v = (x.transpose(1, 2) for x in asked[:3])
    is_plain = not asked.is_causal and not asked.dropout_p
    output = listener.attend(
        q, k, v, asked.attn_mask, asked.scale, is_plain, lambda: dense().transpose(1, 2)
    )
    return output.transpose(1, 2)


def through_torch(asked: Asked) -> Tensor:
    """Serve a call of torch's function, [b, h, n, d]."""

    def dense() -> Tensor:
        return torch.nn.functional.scaled_dot_product_attention(**asked._asdict())

    listener = listener_now()
    if listener is None:
        return dense()
    is_plain = not asked.is_causal and not asked.dropout_p
    return listener.attend(*asked[:4], asked.scale, is_plain, dense)


@torch.library.custom_op(f"{PREFIX}::attention", mutates_args=())
def attention_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
    enable_gqa: bool,
    is_dispatched: bool,
    before: str,
) -> Tensor:
    asked = Asked(query, key, value, mask, dropout_p, is_causal, scale, enable_gqa)
    if is_dispatched:
        found = through_dispatcher(asked, AttentionBackendName(before) if before else None)
    else:
        found = through_torch(asked)
    return found.clone(memory_format=torch.contiguous_format)


@attention_op.register_fake
def _output_shape(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))
