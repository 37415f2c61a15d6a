"""How a history keeps what it holds: in fewer bits, on another device, or both.

A cache trades memory for time, and its anchors are read once a skip. Held as bfloat16 they take
half of fp32's bytes and lose 2^-9 of each value; held in host memory they take none of the
accelerator's and cost two copies over the bus, each of which waits for the device.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Shaped
from pydantic import ByteSize, TypeAdapter, ValidationError
from torch import Tensor

__all__ = ["Budget", "Storage", "parse_bytes"]

_AMOUNT = TypeAdapter(ByteSize)


def parse_bytes(text: str) -> int:
    """Return the bytes that "2GB" (10^9) or "512MiB" (2^20) stand for.

    Raises ValueError for anything else.

    >>> parse_bytes("1.5 kB"), parse_bytes("2MiB")
    (1500, 2097152)
    """
    try:
        return int(_AMOUNT.validate_python(text))
    except ValidationError:
        raise ValueError(
            f"{text!r} is not an amount of memory: give a number and a unit, as "
            "in '2GB' or '512MiB'"
        ) from None


@dataclass(frozen=True)
class Storage:
    """Say in which type and on which device tensors are held; None is as they come.

    Only floating-point tensors change their type.
    """

    dtype: torch.dtype | None = None
    device: torch.device | None = None

    @property
    def is_plain(self) -> bool:
        """Say whether everything is held as it comes."""
        return self.dtype is None and self.device is None

    def pack(self, x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """Return x as it is held; x itself where it already is."""
        dtype = self.dtype if self.dtype is not None and x.is_floating_point() else x.dtype
        return x.to(device=self.device or x.device, dtype=dtype)

    def nbytes(self, x: Shaped[Tensor, "..."]) -> int:
        """Count the bytes that holding x keeps alive: of a view that is held as it comes, all of
        what it is a view of.
        """
        is_copied = (self.dtype not in (None, x.dtype) and x.is_floating_point()) or (
            self.device not in (None, x.device)
        )
        if not is_copied:
            return x.untyped_storage().nbytes()
        narrow = self.dtype if self.dtype is not None and x.is_floating_point() else x.dtype
        return x.numel() * narrow.itemsize


@dataclass
class Budget:
    """Share `cap` bytes among everything one denoiser holds in one run; None is no limit.

    `held` are the bytes of one anchor of each holder. Every holder's `fit()` is called as soon as
    fewer anchors fit than before, and before they would be stored: what is held stays below the cap
    at every moment.
    """

    cap: int | None
    held: dict[int, int] = field(default_factory=dict)
    holders: dict[int, Any] = field(default_factory=dict)

    def fits(self, wanted: int) -> int:
        """Return how many anchors of everything fit, at most those wanted."""
        need = sum(self.held.values())
        return wanted if self.cap is None or need == 0 else min(self.cap // need, wanted)

    def admit(self, holder: Any, nbytes: int) -> None:
        """Count one more tensor of a holder, and lower everybody's number of anchors if it has to
        be.
        """
        if self.cap is None:
            return
        self.holders[id(holder)] = holder
        self.held[id(holder)] = self.held.get(id(holder), 0) + nbytes
        for each in self.holders.values():
            each.fit()

    def dismiss(self, holder: Any) -> None:
        """Forget a holder that lets go of all it held."""
        self.holders.pop(id(holder), None)
        self.held.pop(id(holder), None)
