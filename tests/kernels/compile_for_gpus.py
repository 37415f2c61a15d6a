"""Compile the Triton kernels for GPUs on a machine that has none: `python compile_for_gpus.py 90`.

Every launcher is called with tensors in main memory; instead of a launch, what it would have
launched is compiled to machine code. One line per kernel is printed.
"""

import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from skipstep.kernels.block_pool_triton import block_stats_triton
from skipstep.kernels.block_scores_triton import pooled_softmax_triton
from skipstep.kernels.block_sparse_attention_triton import launch_attention
from skipstep.kernels.block_sparse_gradients_triton import launch_gradients
from skipstep.kernels.delta_triton import shift_groups_triton
from skipstep.kernels.glu_triton import glu_triton
from skipstep.kernels.gs_bin import TileLists
from skipstep.kernels.gs_raster_triton import CompositeTriton
from skipstep.kernels.kmeans_triton import assign_triton, mean_triton
from skipstep.kernels.norm_modulate_triton import norm_modulate_triton
from skipstep.kernels.permute_triton import gather_triton
from skipstep.kernels.qknorm_rope_triton import qk_norm_rope_triton
from skipstep.kernels.quant_attention_triton import launch_quantized
from skipstep.kernels.sampler_step_triton import linear_step_triton
from skipstep.kernels.tuning import pick

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def type_of(value: Any, is_constant: Callable[[Any], bool]) -> Any:
    """Name a kernel argument's type for the compiler; a tuple's is that of its parts."""
    if isinstance(value, tuple):
        return tuple(type_of(part, is_constant) for part in value)
    if is_constant(value):
        return "constexpr"
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def parts_of(value: Any, place: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], Any]]:
    """List a kernel argument, or the parts of a tuple, with their places."""
    if not isinstance(value, tuple):
        yield place, value
        return
    for number, part in enumerate(value):
        yield from parts_of(part, (*place, number))


def compile_instead(
    kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any
) -> None:
    """Compile a kernel for what it would be launched with.

    As in a launch, an absent tensor and a 1 are constants, and the compiler is told which addresses
    and sizes 16 divides: without that it neither loads whole vectors nor loads ahead.
    """
    given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    signature, constants, divisible = {}, {}, {}
    for number, parameter in enumerate(kernel.params):
        value, is_free = given[parameter.name], not parameter.do_not_specialize
        is_constant = constant_in(parameter.is_constexpr, is_free)
        signature[parameter.name] = type_of(value, is_constant)
        for place, part in parts_of(value, (number,)):
            if is_constant(part):
                constants[place] = part
            elif is_free and divides_by_16(part):
                divisible[place] = [["tt.divisibility", 16]]
    options = {name: given[name] for name in ("num_warps", "num_stages") if name in given}
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    compiled = triton.compile(ASTSource(kernel, signature, constants, divisible), target, options)
    shared = compiled.metadata.shared
    print(kernel.__name__, len(compiled.asm["cubin"]), "bytes,", shared, "of shared memory")


def constant_in(is_constexpr: bool, is_free: bool) -> Callable[[Any], bool]:
    """Return which values of a parameter a launch would make constants."""
    return lambda value: is_constexpr or value is None or (is_free and is_one(value))


def is_one(value: Any) -> bool:
    """Say whether a value is the number 1."""
    return isinstance(value, int) and value == 1


def divides_by_16(value: Any) -> bool:
    """Say whether a launch would tell the compiler so of this argument."""
    if isinstance(value, torch.Tensor):
        return value.data_ptr() % 16 == 0
    return isinstance(value, int) and value % 16 == 0


def attention_launches() -> list[Callable[[], Any]]:
    """List calls of the attention kernels, with every flag off and on, at their largest tiles."""
    sm = int(sys.argv[1])
    lists = (torch.zeros(1, 2, 3, 5, dtype=torch.int32), torch.zeros(1, 2, 3, dtype=torch.int32))
    extras = (torch.arange(6), torch.zeros(5, dtype=torch.int32), torch.tensor([300]))
    numbers: dict[str, Any] = {"block_q": 128, "block_k": 64, "scale": 0.1}

    def attention(dtype: torch.dtype, d: int, flags: bool) -> Callable[[], Any]:
        q, k = torch.zeros(1, 2, 300, d, dtype=dtype), torch.zeros(1, 1, 320, d, dtype=dtype)
        return lambda: launch_attention(
            q,
            k,
            k,
            *lists,
            *(extras if flags else (None,) * 3),
            **numbers,
            skip_log2=-8.0 if flags else None,
            tiles=pick("block_sparse_attention", d=d, dtype=dtype, sm=sm, block_q=128, block_k=64),
            upcast_dot=False,
            precision="ieee",
        )

    def quantized(dtype: torch.dtype, d: int, flags: bool) -> Callable[[], Any]:
        q, k = torch.zeros(1, 2, 300, d).to(torch.int8), torch.zeros(1, 1, 320, d).to(torch.int8)
        return lambda: launch_quantized(
            q,
            torch.zeros(1, 2, 300),
            k,
            torch.zeros(1, 1, 320),
            torch.zeros(1, 2, 3, 320) if flags else None,
            torch.zeros(1, 1, 320, d).to(dtype),
            *lists,
            *(extras if flags else (None,) * 3),
            **numbers,
            scale_per_block=not flags,
            tiles=pick("quantized_attention", d=d, dtype=q.dtype, sm=sm, block_q=128, block_k=64),
            upcast_dot=False,
        )

    def gradients(d: int) -> Callable[[], Any]:
        q, k = torch.zeros(1, 2, 300, d).bfloat16(), torch.zeros(1, 1, 320, d).bfloat16()
        sums = torch.zeros(1, 2, 300)
        tiles = pick(
            "block_sparse_attention_backward", d=d, dtype=q.dtype, sm=sm, block_q=128, block_k=64
        )
        return lambda: launch_gradients(
            *(q, sums, q, k, k, sums, lists, lists, *extras[1:]),
            **numbers,
            tiles=tiles,
            upcast_dot=False,
            precision="ieee",
        )

    # Exact products of fp32 numbers take most of the compiler's time, and are the same everywhere.
    return [
        attention(torch.bfloat16, 64, False),
        attention(torch.bfloat16, 128, True),
        gradients(128),
        quantized(torch.bfloat16, 64, False),
        quantized(torch.float8_e4m3fn if sm >= 89 else torch.float16, 128, True),
        *([attention(torch.float32, 80, False)] if sm < 89 else []),
    ]


def splat(channels: int) -> None:
    """Composite a few splats, forward and backward, without autograd's bookkeeping."""
    ids, offsets = torch.zeros(40, dtype=torch.int64), torch.tensor([0, 40, 40])
    splats = torch.zeros(5, 6, requires_grad=True)
    features = torch.zeros(5, channels, requires_grad=True)
    lists = TileLists(ids, offsets, 1, 2, 16)
    out: torch.Tensor = CompositeTriton.apply(splats, features, lists, 0.999, 1e-4)  # type: ignore[no-untyped-call]  # torch's
    torch.autograd.backward(out.sum())


def elementwise_launches() -> list[Callable[[], Any]]:
    """List calls of the kernels that read their tensors once, in the shapes of a large model."""
    x = torch.zeros(1, 256, 3072, dtype=torch.bfloat16)
    row, heads = x[:, :1], x.reshape(1, 256, 24, 128)
    angles = torch.zeros(1, 256, 64)
    weight = torch.zeros(3072)
    return [
        lambda: norm_modulate_triton(x, None, None, row, row, None, 1e-6, False),
        lambda: norm_modulate_triton(x, x, row, row, row, weight, 1e-6, True),
        lambda: qk_norm_rope_triton(heads, heads, None, None, angles, angles, 1e-6, True, False),
        lambda: qk_norm_rope_triton(
            heads, heads, weight, weight, angles, angles, 1e-6, False, True
        ),
        lambda: glu_triton(x, "gelu"),
        lambda: glu_triton(x, "silu"),
        lambda: linear_step_triton([x, x, x, x], [1.0, 2.0, 3.0, 4.0]),
    ]


def launches() -> list[Callable[[], Any]]:
    """List one call of every launcher, with the types and sizes of a large model."""
    x = torch.zeros(1, 2, 256, 128, dtype=torch.bfloat16)
    flat, ids = x.flatten(0, 1), torch.zeros(2, 256, dtype=torch.int32)
    centroids = torch.zeros(2, 100, 128, dtype=torch.float32)
    sizes = torch.zeros(2, 100, dtype=torch.int32)
    return [
        lambda: block_stats_triton(x, 128, None, False),
        lambda: block_stats_triton(x, 128, sizes[0], True),
        lambda: pooled_softmax_triton(x, x, 16, 8, 4, 1.0, False, False),
        lambda: pooled_softmax_triton(x, x, 1, 16, 16, 1.0, True, False),
        lambda: gather_triton(x, ids[0]),
        lambda: assign_triton(flat, centroids.bfloat16(), False),
        lambda: mean_triton(flat, ids, sizes, centroids),
        lambda: shift_groups_triton(x, torch.zeros(1, 2, 4, 128), 64),
        *elementwise_launches(),
        *attention_launches(),
        lambda: splat(4),
        lambda: splat(40),
    ]


def main() -> None:
    """Compile everything; the first kernel that does not compile ends it."""
    JITFunction.run = compile_instead
    for launch in launches():
        launch()


if __name__ == "__main__":
    main()
