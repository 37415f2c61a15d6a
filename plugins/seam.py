"""The seam: the one way into a module's call, outside every hook and every compiled region.

`nn.Module.__call__` consults the instance attribute `_compiled_call_impl` before anything else (it
is where `module.compile()` puts its result). A callable placed there is therefore outermost:
accelerate's offload hooks, diffusers' hook registry, LoRA and `compile_repeated_blocks` all stay
inside and keep working, and `nn.Module.__getstate__` drops the attribute, so copies, pickles and
saved files never see a seam.

The attribute is private to torch. `call_slot_works` tests at first use that it still behaves as
described; where it does not, `seam_of` hands out a `ForwardSeam`, which replaces the instance's
`forward`: slower by one attribute look-up, inside accelerate's hooks instead of outside, and lost
when offload is switched on afterwards.
"""

import copy
import functools
import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["CallSlotSeam", "ForwardSeam", "Seam", "call_slot_works", "find_seam", "seam_of"]

logger = logging.getLogger(__name__)

SLOT = "_compiled_call_impl"
Wrap = Callable[..., Any]
_SEAMS: "weakref.WeakKeyDictionary[nn.Module, Seam]" = weakref.WeakKeyDictionary()


class Seam(ABC):
    """Hold the wraps of one module; the smallest order is outermost."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.wraps: list[tuple[int, object, Wrap]] = []
        self.chain: Callable[..., Any] = self.inner()
        _SEAMS[module] = self

    def add(self, owner: object, wrap: Wrap, order: int) -> None:
        """Put `wrap(call_next, *args, **kwargs)` around the module's call, for `owner`."""
        self.wraps.append((order, owner, wrap))
        self.wraps.sort(key=lambda entry: entry[0])
        self.rebuild()

    def remove(self, owner: object) -> None:
        """Take away every wrap of `owner`; the last one to leave takes the seam with it."""
        self.wraps = [entry for entry in self.wraps if entry[1] is not owner]
        if self.wraps:
            self.rebuild()
        else:
            _SEAMS.pop(self.module, None)
            self.uninstall()

    def rebuild(self) -> None:
        """Compose the wraps once, so that a call costs one Python frame per wrap."""
        call = self.inner()
        for _, _, wrap in reversed(self.wraps):
            call = functools.partial(wrap, call)
        self.chain = call

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.chain(*args, **kwargs)

    @abstractmethod
    def inner(self) -> Callable[..., Any]:
        """Return what the module's call was before us."""

    @property
    @abstractmethod
    def is_installed(self) -> bool:
        """Say whether a call of the module comes here first."""

    @abstractmethod
    def uninstall(self) -> None:
        """Leave the module as it was found."""

    @abstractmethod
    def heal(self) -> None:
        """Become outermost again after the user compiled or hooked the module."""


class CallSlotSeam(Seam):
    """Sit in the module's call slot; the compiled call that was there before, if any, is what we
    wrap.
    """

    def __init__(self, module: nn.Module) -> None:
        self.previous: Callable[..., Any] | None = getattr(module, SLOT)
        super().__init__(module)
        setattr(module, SLOT, self)

    def inner(self) -> Callable[..., Any]:
        return self.previous or self.module._call_impl

    @property
    def is_installed(self) -> bool:
        return getattr(self.module, SLOT) is self

    def uninstall(self) -> None:
        if not self.is_installed:
            return
        if self.previous is None:
            self.module.__dict__.pop(SLOT, None)
        else:
            setattr(self.module, SLOT, self.previous)

    def heal(self) -> None:
        if not self.is_installed:
            self.previous = getattr(self.module, SLOT)
            setattr(self.module, SLOT, self)
            self.rebuild()


class ForwardSeam(Seam):
    """Replace the instance's `forward`: what remains when torch's call slot does not behave as
    expected.
    """

    def __init__(self, module: nn.Module) -> None:
        self.previous: Callable[..., Any] | None = module.__dict__.get("forward")
        super().__init__(module)
        module.__dict__["forward"] = self

    def inner(self) -> Callable[..., Any]:
        return self.previous or functools.partial(type(self.module).forward, self.module)

    @property
    def is_installed(self) -> bool:
        return self.module.__dict__.get("forward") is self

    def uninstall(self) -> None:
        if not self.is_installed:
            return
        if self.previous is None:
            del self.module.__dict__["forward"]
        else:
            self.module.__dict__["forward"] = self.previous

    def heal(self) -> None:
        if not self.is_installed:
            self.previous = self.module.__dict__.get("forward")
            self.module.__dict__["forward"] = self
            self.rebuild()


def seam_of(module: nn.Module) -> Seam:
    """Return the module's seam, outermost, installing one if it has none.

    There is one seam per module, also after the user put something over it: two would end up
    around each other.
    """
    found = find_seam(module)
    if found is not None:
        found.heal()
        return found
    return CallSlotSeam(module) if call_slot_works() else ForwardSeam(module)


def find_seam(module: nn.Module) -> Seam | None:
    """Return the module's seam, or None."""
    return _SEAMS.get(module)


class _Probe(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


@functools.cache
def call_slot_works() -> bool:
    """Test once that torch calls what is in the slot, passes on to `_call_impl`, and keeps it out
    of copies.
    """
    probe, x = _Probe(), torch.zeros(1)
    hooked: list[str] = []
    inner: Callable[..., torch.Tensor] = probe._call_impl
    try:
        probe.register_forward_hook(lambda *_: hooked.append("hook"))
        setattr(probe, SLOT, lambda value: inner(value) * 10)
        called = probe(x).item() == 10 and hooked == ["hook"]
        clean = getattr(copy.deepcopy(probe), SLOT) is None
        probe.__dict__.pop(SLOT)
        restored = probe(x).item() == 1
        works = called and clean and restored
    except (AttributeError, KeyError, TypeError):
        works = False
    if not works:
        logger.warning(
            "torch %s no longer consults nn.Module.%s as skipstep expects: falling back to "
            "wrapping forward(). "
            "Enable plugins after offload, and disable them before copying a pipeline.",
            torch.__version__,
            SLOT,
        )
    return works
