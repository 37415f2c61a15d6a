"""Which implementation of an op runs, and how an op is made known to torch.

Every op file holds the definition in plain torch (`<op>_ref`), the path that runs on a CPU where it
differs, and one public function. Triton kernels live beside it in `<op>_triton.py`, the only files
that import triton at the top; an op imports its own inside the function that launches it. The rule
for one call:

1. the argument `backend`, else the environment variable SKIPSTEP_KERNELS, names the backend;
2. else tensors on a CUDA device, with triton installed and a type and shape that the kernel
   serves, go to "triton";
3. everything else goes to "torch". "interpret", Triton's interpreter on the CPU, is a thousand
   times slower and runs only where it is asked for; it needs TRITON_INTERPRET=1 before the first
   kernel is imported.

A kernel that fails to compile (too little shared memory, an architecture that Triton does not know)
warns once per op and device and leaves the call to torch, now and afterwards.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal, TypeVar, cast, get_args

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

__all__ = [
    "Backend",
    "backend_for",
    "custom_op",
    "dot_precision",
    "has_triton",
    "next_power_of_2",
    "or_torch",
    "upcast_dot",
]

Backend = Literal["triton", "interpret", "torch"]
CHOICES = ("auto", *get_args(Backend))
VARIABLE = "SKIPSTEP_KERNELS"

# Every tl.dot operand has at least 16 rows; wider types than these have no tensor core.
SERVED = (torch.float32, torch.bfloat16, torch.float16)

Result = TypeVar("Result")
_failed: dict[tuple[str, torch.device], str] = {}


@cache
def has_triton() -> bool:
    """Say whether triton can be imported, without importing it."""
    return importlib.util.find_spec("triton") is not None


def next_power_of_2(n: int) -> int:
    """Return the smallest power of two that is at least n: what tl.arange accepts.

    >>> [next_power_of_2(n) for n in (1, 3, 64, 80)]
    [1, 4, 64, 128]
    """
    return 1 << max(n - 1, 0).bit_length()


def backend_for(
    op: str,
    *tensors: Tensor,
    backend: str | None = None,
    dtypes: tuple[torch.dtype, ...] = SERVED,
    unserved: str | None = None,
) -> Backend:
    """Choose the backend of one call of `op`.

    Args:
        op: the name of the op, for messages.
        tensors: the inputs; their devices and types decide.
        backend: "torch", "triton" or "interpret" where the caller insists; None and "auto" do not.
        dtypes: what the kernel serves.
        unserved: why the kernel cannot serve this call, in words; None where it can.

    Raises ValueError on an unknown name, and where a backend is demanded that cannot serve.
    """
    wanted = backend if backend not in (None, "auto") else os.environ.get(VARIABLE, "auto")
    if wanted not in CHOICES:
        source = "the argument backend" if backend not in (None, "auto") else VARIABLE
        raise ValueError(f"{op}: {source} is {wanted!r}: allowed are {', '.join(CHOICES)}")
    if wanted == "torch":
        return "torch"
    on_cuda = all(tensor.is_cuda for tensor in tensors)
    problem = unserved
    if not has_triton():
        problem = 'triton is not installed: pip install "skipstep[kernels]"'
    elif bad := [tensor.dtype for tensor in tensors if tensor.dtype not in dtypes]:
        problem = f"the kernel takes {', '.join(map(str, dtypes))}, not {bad[0]}"
    if wanted == "auto":
        return "triton" if on_cuda and problem is None else "torch"
    if wanted == "triton" and not on_cuda:
        problem = "the tensors are not on a CUDA device; use 'interpret' to run on the CPU"
    if wanted == "interpret" and os.environ.get("TRITON_INTERPRET") != "1":
        problem = "set TRITON_INTERPRET=1 before the first kernel is imported"
    if problem is not None:
        raise ValueError(f"{op}: backend {wanted!r} cannot serve this call: {problem}")
    return cast(Backend, wanted)


def or_torch(
    op: str, device: torch.device, kernel: Callable[[], Result], plain: Callable[[], Result]
) -> Result:
    """Run `kernel`, or `plain` where the kernel does not compile on this device; warn once."""
    from triton.errors import TritonError

    if (op, device) in _failed:
        return plain()
    try:
        return kernel()
    except TritonError as error:
        if device.type != "cuda":
            raise
        _failed[op, device] = str(error)
        warnings.warn(
            f"{op}: the Triton kernel does not compile on {device} ({error}); plain torch "
            f"runs instead. Report your GPU and triton's version; {VARIABLE}=torch silences this",
            RuntimeWarning,
            stacklevel=2,
        )
        return plain()


def upcast_dot(backend: Backend, dtype: torch.dtype) -> bool:
    """Say whether a kernel must widen the operands of tl.dot: its UPCAST_DOT.

    Triton's interpreter multiplies the bit patterns of bf16 numbers as integers (triton pull
    request 11585, closed as not supported), so bf16 operands are widened there and nowhere else.
    """
    return backend == "interpret" and dtype == torch.bfloat16


def dot_precision() -> str:
    """Return how a kernel multiplies fp32 numbers: as torch does for matrix products."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def custom_op(
    name: str, fake: Callable[..., object]
) -> Callable[[Callable[..., object]], CustomOpDef]:
    """Make a function an op of torch's: `torch.compile` keeps it whole, with no graph break.

    The function takes and returns plain tensors and numbers, returns new memory and changes
    nothing. Gradients, where they exist, are added by `.register_autograd`.

    Args:
        name: of the op, in the namespace `skipstep`.
        fake: takes the same arguments and returns empty tensors of the result's shape.
    """

    def register(function: Callable[..., object]) -> CustomOpDef:
        op = torch.library.custom_op(f"skipstep::{name}", mutates_args=())(function)
        op.register_fake(fake)
        return op

    return register
