"""Block-sparse attention on this machine's CPU, beside dense attention: how much of the ideal.

At sparsity s a list keeps 1 - s of the key blocks, so 1 / (1 - s) is the ideal gain over dense
scaled dot-product attention. Dense and sparse calls run in turns in this one process, on one
thread; figures are CPU seconds, the median of all rounds. Lists are random top-k, which no two
query blocks share: the hardest case. Break-even is the density at which sparse is as fast as dense,
from which `plugins.attention` stays dense.

    python -m benchmarks.attention
    python -m benchmarks.attention --errors    # of quantised attention, on drawn tensors
    python -m benchmarks.attention --tokens 4096 --heads 4 --rounds 9 --output docs/kernels-cpu.json
"""

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, scaled_dot_product_attention

from skipstep.kernels.block_layout import BlockLists, blocks_of, from_topk
from skipstep.kernels.block_sparse_attention import block_sparse_attention
from skipstep.kernels.quant_attention import quantized_attention

BLOCK_K = 128
SPARSITIES = (0.5, 0.7, 0.9)


class Row(NamedTuple):
    """One cell of the table: CPU seconds of dense and sparse calls at one density."""

    dtype: str
    block_q: int
    density: float
    dense: float
    sparse: float

    @property
    def gain(self) -> float:
        """How many times faster than dense."""
        return self.dense / self.sparse

    @property
    def share(self) -> float:
        """Which share of the ideal gain that is."""
        return self.gain * self.density


def random_lists(
    tokens: int, heads: int, block_q: int, block_k: int, sparsity: float, seed: int = 0
) -> BlockLists:
    """Keep random key blocks, equally many in every row."""
    nq, nk = blocks_of(tokens, block_q), blocks_of(tokens, block_k)
    scores = torch.rand(1, heads, nq, nk, generator=torch.Generator().manual_seed(seed))
    keep = max(1, round(nk * (1 - sparsity)))
    return from_topk(scores, keep, block_q=block_q, block_k=block_k)


def cpu_seconds(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Run all calls in turns and return the median CPU seconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.process_time()
            call()
            taken[name].append(time.process_time() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def measure(
    dtype: torch.dtype, *, tokens: int, heads: int, d: int, blocks_q: list[int], rounds: int
) -> list[Row]:
    """Measure every block size and sparsity of one type beside dense attention."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 1, heads, tokens, d, generator=generator).to(dtype).unbind()
    name = str(dtype).removeprefix("torch.")
    rows = []
    for block_q in blocks_q:
        calls: dict[str, Callable[[], object]] = {
            "dense": lambda: scaled_dot_product_attention(q, k, v)
        }
        densities = {}
        for sparsity in SPARSITIES:
            lists = random_lists(tokens, heads, block_q, BLOCK_K, sparsity)
            densities[f"{sparsity}"] = float(lists.density())
            calls[f"{sparsity}"] = lambda lists=lists: block_sparse_attention(  # type: ignore[misc] # the default binds the loop's lists
                q, k, v, lists
            )
        seconds = cpu_seconds(calls, rounds)
        rows += [
            Row(name, block_q, density, seconds["dense"], seconds[key])
            for key, density in densities.items()
        ]
    return rows


def break_even(rows: list[Row]) -> float:
    """Return the density from which dense attention is faster.

    A sparse call costs a + b * density, so the line through the measured points says where it
    meets the dense call; 1 where it never does.
    """
    x, y = [row.density for row in rows], [row.sparse for row in rows]
    slope, intercept = statistics.linear_regression(x, y)
    dense = statistics.mean(row.dense for row in rows)
    return min(1.0, (dense - intercept) / slope)


def table(rows: list[Row]) -> str:
    """Write the rows as a Markdown table, one line per type and block size."""
    lines = [
        "| type | query rows per block | "
        + " | ".join(f"{s:.0%} sparse: gain (of ideal)" for s in SPARSITIES)
        + " | break-even density |",
        "|---|---|" + "---|" * (len(SPARSITIES) + 1),
    ]
    for dtype, block_q in dict.fromkeys((row.dtype, row.block_q) for row in rows):
        group = [row for row in rows if (row.dtype, row.block_q) == (dtype, block_q)]
        cells = [f"{row.gain:.2f}x ({row.share:.0%})" for row in group]
        lines.append(f"| {dtype} | {block_q} | {' | '.join(cells)} | {break_even(group):.2f} |")
    return "\n".join(lines)


QUANTISED: dict[str, dict[str, Any]] = {
    "int8, no smoothing": {"smooth_k": False},
    "int8, smooth K": {},
    "int8 per thread, smooth K": {"groups": "thread"},
    "int8 per token, smooth K": {"groups": "token"},
    "int8, smooth Q and K": {"smooth_q": True},
    "int4 per thread, smooth Q and K": {"bits": 4, "groups": "thread", "smooth_q": True},
    "int8, smooth K, fp8 values": {"pv": "fp8"},
}


def peaked(outlier: float, n: int, heads: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw neighbours that attend to each other, with a tenth of the channels off by `outlier`."""
    generator = torch.Generator().manual_seed(0)
    noise = functools.partial(torch.randn, generator=generator)
    base = noise(1, heads, n, d)
    smooth = avg_pool1d(base.transpose(2, 3).reshape(heads, d, n), 65, 1, 32)
    base = base + 6 * smooth.reshape(1, heads, d, n).transpose(2, 3)
    large = (torch.rand(1, heads, 1, d, generator=generator) < 0.1) * outlier
    q = base + 0.5 * noise(1, heads, n, d) + 0.5 * large * noise(1, heads, 1, d)
    k = base + 0.5 * noise(1, heads, n, d) + large * noise(1, heads, 1, d)
    return q, k, noise(1, heads, n, d) + 0.3


def error_table(tokens: int, heads: int, d: int) -> str:
    """Write the relative L1 distance of each setting from float64, by size of the outliers."""
    outliers = (0.0, 8.0, 20.0)
    drawn = [peaked(outlier, tokens, heads, d) for outlier in outliers]
    exact = [scaled_dot_product_attention(q.double(), k.double(), v.double()) for q, k, v in drawn]

    def row(name: str, call: Callable[..., Tensor]) -> str:
        found = [call(*each).double() for each in drawn]
        errors = [
            float((a - b).abs().sum() / b.abs().sum()) for a, b in zip(found, exact, strict=True)
        ]
        return f"| {name} | {' | '.join(f'{error:.4f}' for error in errors)} |"

    def bf16(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())

    lines = ["| setting | no outliers | outliers of 8 | of 20 |", "|---|---|---|---|"]
    lines.append(row("plain bf16", bf16))
    for name, settings in QUANTISED.items():
        lines.append(row(name, functools.partial(quantized_attention, **settings)))
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--d", type=int, default=64, help="head dim")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--blocks", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--types", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--output", type=Path, help="also write the rows as JSON lines")
    parser.add_argument("--errors", action="store_true", help="of quantised attention instead")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.errors:
        print(error_table(2048, 4, 64))
        return
    rows = []
    for name in arguments.types:
        rows += measure(
            getattr(torch, name),
            tokens=arguments.tokens,
            heads=arguments.heads,
            d=arguments.d,
            blocks_q=arguments.blocks,
            rounds=arguments.rounds,
        )
    print(f"{arguments.tokens} tokens, {arguments.heads} heads of {arguments.d}, key blocks of")
    print(f"{BLOCK_K}, one thread, torch {torch.__version__}\n")
    print(table(rows))
    if arguments.output:
        lines = [json.dumps(row._asdict()) for row in rows]
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    with torch.inference_mode():
        main()
