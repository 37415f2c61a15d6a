"""Compile the Triton kernels for GPUs on a machine that has none: `python compile_for_gpus.py 90`.

Every launcher is called with tensors in main memory; instead of a launch, what it would have
launched is compiled to machine code. One line per kernel is printed.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from skipstep.kernels.block_pool_triton import block_stats_triton
from skipstep.kernels.block_scores_triton import pooled_softmax_triton
from skipstep.kernels.delta_triton import shift_groups_triton
from skipstep.kernels.kmeans_triton import assign_triton, mean_triton
from skipstep.kernels.permute_triton import gather_triton

TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
}


def type_of(value: Any) -> str:
    """Name a kernel argument's type for the compiler."""
    if isinstance(value, torch.Tensor):
        return TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def compile_instead(
    kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any
) -> None:
    """Compile a kernel for what it would be launched with."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | kwargs
    names = {parameter.name for parameter in kernel.params if parameter.is_constexpr}
    constants = {name: given[name] for name in names}
    signature = {
        name: "constexpr" if name in names else type_of(given[name]) for name in kernel.arg_names
    }
    options = {name: given[name] for name in ("num_warps", "num_stages") if name in given}
    target = GPUTarget("cuda", int(sys.argv[1]), 32)
    compiled = triton.compile(ASTSource(kernel, signature, constants), target, options)
    shared = compiled.metadata.shared
    print(kernel.__name__, len(compiled.asm["cubin"]), "bytes,", shared, "of shared memory")


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
    ]


def main() -> None:
    """Compile everything; the first kernel that does not compile ends it."""
    JITFunction.run = compile_instead
    for launch in launches():
        launch()


if __name__ == "__main__":
    main()
