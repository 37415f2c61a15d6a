"""One or more cases per kernel: inputs, the call, and how exact it must be.

A new kernel file needs one entry in CASES, or a test says so. Sizes are drawn on the device; with
`tiny` they take milliseconds on a CPU, through the same calls.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from skipstep.kernels.block_layout import BlockLists, blocks_of, from_bool, longest_first
from skipstep.kernels.block_pool import block_mean, block_stats
from skipstep.kernels.block_scores import antidiagonal_scores, sampled_scores
from skipstep.kernels.block_sparse_attention import block_sparse_attention
from skipstep.kernels.block_sparse_gradients import block_sparse_gradients
from skipstep.kernels.delta import delta_correct
from skipstep.kernels.glu import geglu, swiglu
from skipstep.kernels.gs_raster import rasterize_gaussians
from skipstep.kernels.kmeans import kmeans
from skipstep.kernels.norm_modulate import gate_residual_norm_modulate, layernorm_modulate
from skipstep.kernels.permute import gather_tokens
from skipstep.kernels.qknorm_rope import qk_norm_rope
from skipstep.kernels.quant_attention import quantized_attention
from skipstep.kernels.sampler_step import linear_step

KERNELS = Path(__file__).resolve().parents[2] / "kernels"

FP32, BF16, FP16 = torch.float32, torch.bfloat16, torch.float16

Inputs = tuple[Tensor, ...]
Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Case:
    """One call of one op.

    Args:
        op: the op's file in kernels/, without `.py`.
        label: what distinguishes this case.
        make: draws the inputs on a device, tiny or as large as in a real model.
        call: takes the inputs and `backend=`, returns the outputs.
        tolerance: largest relative L2 distance of an output from the reference.
        exact: whether the reference takes float64 inputs; else those of the case.
    """

    op: str
    label: str
    make: Callable[[torch.device, bool], Inputs]
    call: Callable[..., Outputs]
    tolerance: float
    exact: bool = True

    @property
    def name(self) -> str:
        """Name the case."""
        return f"{self.op}/{self.label}"


def reference(case: Case, inputs: Inputs) -> Outputs:
    """Compute the outputs in plain torch on the CPU."""
    moved = [x.cpu() for x in inputs]
    if case.exact:
        moved = [x.double() if x.is_floating_point() else x for x in moved]
    return case.call(*moved, backend="torch")


def relative_error(outputs: Outputs, expected: Outputs) -> float:
    """Return the largest relative L2 distance of an output; infinite values must agree."""
    worst = 0.0
    for actual, wanted in zip(outputs, expected, strict=True):
        a, w = actual.cpu().double(), wanted.double()
        if not torch.equal(a.isfinite(), w.isfinite()):
            return float("inf")
        a, w = a[w.isfinite()], w[w.isfinite()]
        worst = max(worst, float((a - w).norm() / w.norm().clamp_min(1e-12)))
    return worst


def uncovered() -> set[str]:
    """List the ops that launch a Triton kernel and have no case."""
    files = [path for path in KERNELS.glob("*_triton.py") if "_kernel[" in path.read_text("utf-8")]
    return {path.stem.removesuffix("_triton") for path in files} - {case.op for case in CASES}


def draw(device: torch.device, dtype: torch.dtype, *shape: int, seed: int = 0) -> Tensor:
    """Draw normal numbers, the same in every run on one kind of device."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(*shape, generator=generator, device=device, dtype=torch.float32).to(dtype)


def uniform(device: torch.device, *shape: int, seed: int) -> Tensor:
    """Draw numbers in 0 to 1, the same in every run on one kind of device."""
    chance: Tensor = torch.special.ndtr(draw(device, torch.float32, *shape, seed=seed))
    return chance


def attention_inputs(
    dtype: torch.dtype, d: int, n: int, m: int, heads: tuple[int, int], density: float
) -> Callable[[torch.device, bool], Inputs]:
    """Draw queries, keys, values, lists as a map, and lengths of the batch entries."""

    def make(device: torch.device, tiny: bool) -> Inputs:
        (rows, keys) = (n // 16 + 3, m // 16 + 5) if tiny else (n, m)
        q = draw(device, dtype, 2, heads[0], rows, d)
        k, v = (draw(device, dtype, 2, heads[1], keys, d, seed=seed) for seed in (1, 2))
        shape = 2, heads[0], blocks_of(rows, 128), blocks_of(keys, 64)
        kept = uniform(device, *shape, seed=3) < density
        return q, k, v, kept, torch.tensor([keys, keys - 7], device=device)

    return make


def far_rows(device: torch.device, tiny: bool) -> Inputs:
    """Draw tokens whose last rows lie more than 2^31 numbers away, where there is memory for it."""
    stride = 2**25 if device.type == "cuda" else 2**6
    q, k, v, _, lens = attention_inputs(BF16, 64, 130, 130, (1, 1), 1.0)(device, False)
    memory = torch.empty(130 * stride, dtype=BF16, device=device)
    far = memory.as_strided(k[:1].shape, (0, 0, stride, 1)).copy_(k[:1])
    kept = torch.ones(1, 1, 2, 3, dtype=torch.bool, device=device)
    return q[:1], far, v[:1], kept, lens[:1]


def listed(kept: Tensor) -> BlockLists:
    """Make lists of a map, the longest first."""
    return longest_first(from_bool(kept), kept.shape[0], kept.shape[1])


def sparse(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, lens: Tensor, **options: Any) -> Outputs:
    """Call block-sparse attention on a map."""
    return block_sparse_attention(q, k, v, listed(kept), kv_lens=lens, return_lse=True, **options)


def trained(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, lens: Tensor, **options: Any) -> Outputs:
    """Return the gradients of a loss that weighs every number of the output differently."""
    lists = listed(kept)
    o, lse = block_sparse_attention(q, k, v, lists, kv_lens=lens, return_lse=True, **options)
    do = q.flip(2)
    delta = (do.to(lse.dtype) * o.to(lse.dtype)).sum(-1)
    numbers = lists.block_q, lists.block_k, lists.blocks_k, q.shape[-1] ** -0.5
    backend = options.get("backend") or "auto"
    gradients: Outputs = block_sparse_gradients(
        do, delta, q, k, v, lse, lists.idx, lists.cnt, None, lens, *numbers, backend
    )
    return gradients


def quantised(**settings: Any) -> Callable[..., Outputs]:
    """Call quantised attention on a map."""

    def call(
        q: Tensor, k: Tensor, v: Tensor, kept: Tensor, lens: Tensor, **options: Any
    ) -> Outputs:
        return quantized_attention(
            q, k, v, listed(kept), kv_lens=lens, return_lse=True, **settings, **options
        )

    return call


def tokens(dtype: torch.dtype, *others: int) -> Callable[[torch.device, bool], Inputs]:
    """Draw one tensor per further seed: [1, 24, tokens, 128]."""

    def make(device: torch.device, tiny: bool) -> Inputs:
        shape = (1, 2, 333, 32) if tiny else (1, 24, 32760, 128)
        return tuple(draw(device, dtype, *shape, seed=seed) for seed in (0, *others))

    return make


def with_order(device: torch.device, tiny: bool) -> Inputs:
    """Draw tokens and an order of them."""
    (x,) = tokens(torch.bfloat16)(device, tiny)
    return x, torch.randperm(x.shape[2], generator=torch.Generator().manual_seed(0)).to(device)


def token_lists(device: torch.device, tiny: bool) -> Inputs:
    """Draw tokens around few centres, [heads, tokens, d], and those centres."""
    heads, rows, d, k = (2, 300, 32, 5) if tiny else (24, 32760, 128, 300)
    centres = 20 * draw(device, torch.float32, heads, k, d)
    ids = torch.arange(rows, device=device) % k
    return centres[:, ids] + draw(device, torch.float32, heads, rows, d, seed=1), centres


def stream(rows: int, *others: int) -> Callable[[torch.device, bool], Inputs]:
    """Draw streams of tokens, [1, tokens, channels], and `rows` modulations of them."""

    def make(device: torch.device, tiny: bool) -> Inputs:
        n, d = (333, 96) if tiny else (16384, 3072)
        streams = [draw(device, torch.bfloat16, 1, n, d, seed=seed) for seed in (0, *others)]
        rest = [draw(device, torch.bfloat16, 1, d, seed=10 + row) for row in range(rows)]
        return (*streams, *rest)

    return make


def with_angles(device: torch.device, tiny: bool) -> Inputs:
    """Draw queries and keys, [1, tokens, heads, d], weights and angles."""
    n, heads, d = (333, 2, 32) if tiny else (16384, 24, 128)
    q, k = (draw(device, torch.bfloat16, 1, n, heads, d, seed=seed) for seed in (0, 1))
    weights = [draw(device, torch.bfloat16, d, seed=seed) for seed in (2, 3)]
    angle = 6 * uniform(device, n, d // 2, seed=4)
    return q, k, *weights, angle.cos(), angle.sin()


def splats(device: torch.device, tiny: bool) -> Inputs:
    """Draw pixel means, conics, depths, opacities, features of one view, and its empty canvas."""
    n, side = (40, 24) if tiny else (100_000, 512)
    shape = [uniform(device, 1, n, seed=seed) for seed in range(5)]
    a, c = 0.02 + 0.3 * shape[0], 0.02 + 0.3 * shape[1]
    conics = torch.stack([a, (1.6 * shape[2] - 0.8) * (a * c).sqrt(), c], -1)
    means = side * uniform(device, 1, n, 2, seed=5)
    features = draw(device, FP32, 1, n, 3, seed=6)
    return means, conics, 1 + shape[3], shape[4], features, torch.zeros(side, side, device=device)


def splatted(*inputs: Tensor, backend: str | None = None) -> Outputs:
    """Render, and return the gradients of a loss that weighs every pixel differently, too."""
    *values, canvas = inputs
    leaves = [value.detach().requires_grad_() for value in values]
    height, width = canvas.shape
    image, alpha = rasterize_gaussians(
        *leaves, width=width, height=height, background=leaves[4].new_zeros(3), backend=backend
    )
    weights = torch.linspace(-1, 1, image.numel(), dtype=image.dtype, device=image.device)
    torch.autograd.backward((image * weights.reshape(image.shape)).sum() + alpha.sum())
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return [image.detach(), alpha.detach(), *gradients]


CASES: list[Case] = [
    *(
        Case("block_sparse_attention", label, attention_inputs(*shape), sparse, tolerance)
        for label, shape, tolerance in (
            ("fp32_d64", (FP32, 64, 2048, 2048, (2, 2), 0.3), 2e-6),
            ("fp16_d128", (FP16, 128, 4096, 3000, (4, 2), 0.3), 1e-3),
            ("bf16_d64", (BF16, 64, 4096, 4096, (4, 4), 0.3), 4e-3),
            ("bf16_d128", (BF16, 128, 5000, 4096, (4, 1), 0.5), 4e-3),
            ("bf16_d80", (BF16, 80, 2048, 2048, (2, 2), 1.0), 4e-3),
            ("bf16_d256", (BF16, 256, 2048, 2048, (2, 2), 0.1), 4e-3),
        )
    ),
    Case("block_sparse_attention", "far_rows", far_rows, sparse, 4e-3),
    *(
        Case("block_sparse_gradients", label, attention_inputs(*shape), trained, tolerance)
        for label, shape, tolerance in (
            ("fp32_d64", (FP32, 64, 2048, 1500, (4, 2), 0.3), 1e-5),
            ("bf16_d128", (BF16, 128, 4096, 4096, (4, 4), 0.3), 2e-2),
        )
    ),
    *(
        Case(
            "quant_attention",
            label,
            attention_inputs(BF16, d, 4096, 3000, (4, 2), 0.3),
            quantised(**settings),
            tolerance,
            exact=False,
        )
        for label, d, settings, tolerance in (
            ("int8_d64", 64, {}, 5e-3),
            ("int8_d128_thread", 128, {"groups": "thread", "smooth_q": True}, 5e-3),
            ("int4_d128", 128, {"bits": 4, "groups": "thread", "smooth_q": True}, 5e-3),
            ("int8_fp8_d128", 128, {"pv": "fp8"}, 2e-2),
        )
    ),
    Case(
        "block_pool",
        "mean_128",
        tokens(BF16),
        lambda x, backend=None: [block_mean(x, 128, backend=backend)],
        1e-5,
    ),
    Case(
        "block_pool",
        "stats_64",
        tokens(BF16),
        lambda x, backend=None: list(block_stats(x, 64, backend=backend)),
        1e-4,
    ),
    Case(
        "block_scores",
        "antidiagonal_16",
        tokens(BF16, 1),
        lambda q, k, backend=None: [antidiagonal_scores(q, k, stride=16, backend=backend)],
        1e-2,
    ),
    Case(
        "block_scores",
        "sampled_16",
        tokens(BF16, 1),
        lambda q, k, backend=None: [sampled_scores(q, k, count=16, backend=backend)],
        1e-2,
    ),
    Case(
        "permute",
        "gather",
        with_order,
        lambda x, order, backend=None: [gather_tokens(x, order, backend=backend)],
        0.0,
    ),
    Case(
        "kmeans",
        "2_iterations",
        token_lists,
        lambda x, centres, backend=None: [
            kmeans(x, centres.shape[1], init=centres, backend=backend).centroids
        ],
        1e-4,
    ),
    Case(
        "norm_modulate",
        "layernorm",
        stream(2),
        lambda x, scale, shift, backend=None: [
            layernorm_modulate(x, scale, shift, backend=backend)
        ],
        4e-3,
    ),
    Case(
        "norm_modulate",
        "gated_residual",
        stream(3, 1),
        lambda residual, x, gate, scale, shift, backend=None: list(
            gate_residual_norm_modulate(residual, x, gate, scale, shift, backend=backend)
        ),
        6e-3,
    ),
    *(
        Case(
            "qknorm_rope",
            label,
            with_angles,
            lambda q, k, w, v, cos, sin, pairs=pairs, backend=None: list(
                qk_norm_rope(q, k, w, v, cos, sin, interleaved=pairs, backend=backend)
            ),
            4e-3,
        )
        for label, pairs in (("pairs", True), ("halves", False))
    ),
    Case("glu", "geglu", stream(0), lambda x, backend=None: [geglu(x, backend=backend)], 4e-3),
    Case("glu", "swiglu", stream(0), lambda x, backend=None: [swiglu(x, backend=backend)], 4e-3),
    Case(
        "sampler_step",
        "guided",
        stream(0, 1, 2),
        lambda x, cond, uncond, backend=None: [
            linear_step(
                x, 1.0, [cond], [-0.1], unconditional=[uncond], guidance=4.0, backend=backend
            )
        ],
        4e-3,
    ),
    Case("gs_raster", "forward_and_backward", splats, splatted, 1e-4),
    Case(
        "delta",
        "stride_64",
        tokens(BF16, 1, 2, 3),
        lambda o, q, k, v, backend=None: [delta_correct(o, q, k, v, backend=backend)],
        1e-2,
    ),
]
