"""The slices of a GPU session and their units of work, each below a minute.

correctness  every case against float64 on the CPU
roofline     what this GPU reaches: bf16 matrix product, copies of 4 MB to 1 GB
tune         tiles of the attention kernels, for `kernels.tuning`
sparse       block-sparse attention beside SDPA (cuDNN, flash) and compiled flex_attention
quantised    int8 scores, kernel alone and with quantisation, beside SDPA
elementwise  every other kernel: GB/s, the share of a copy's that is, and plain torch's time
splat        rendering of Gaussians, scenes and feed-forward sizes, beside gsplat
"""

import functools
import importlib.util
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from skipstep.benchmarks.gpu.cases import CASES, Case, draw, reference, relative_error, uniform
from skipstep.kernels.block_layout import (
    BlockLists,
    all_blocks,
    blocks_of,
    from_bool,
    from_topk,
    longest_first,
)
from skipstep.kernels.block_sparse_attention import block_sparse_attention
from skipstep.kernels.quant_attention import quantize_qk, quantized_attention
from skipstep.kernels.tuning import SHARED_LIMIT, Tiles, architecture, key_of, shared_bytes

Values = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """One measurement: its name and what takes it."""

    name: str
    measure: Callable[[], Values]


@dataclass(frozen=True)
class Machine:
    """Where a session runs: a GPU, or the CPU with tiny sizes for a dry run."""

    device: torch.device
    tiny: bool

    def milliseconds(self, call: Callable[[], object]) -> list[float]:
        """Return the 20th, 50th and 80th percentile of a call's time."""
        if self.device.type == "cuda":
            from triton.testing import do_bench

            found: list[float] = do_bench(call, warmup=50, rep=300, quantiles=[0.5, 0.2, 0.8])
            return [found[1], found[0], found[2]]
        times = []
        for _ in range(3):
            started = time.process_time()
            call()
            times.append(1000 * (time.process_time() - started))
        return sorted(times)

    def median(self, call: Callable[[], object]) -> float:
        """Return the median time of a call in milliseconds."""
        return self.milliseconds(call)[1]


def correctness(machine: Machine) -> Iterator[Unit]:
    """Compare every case with float64."""

    def measure(case: Case) -> Values:
        inputs = case.make(machine.device, True)
        error = relative_error(case.call(*inputs), reference(case, inputs))
        return {"error": error, "tolerance": case.tolerance, "right": error <= case.tolerance}

    for case in CASES:
        yield Unit(case.name, functools.partial(measure, case))


def roofline(machine: Machine) -> Iterator[Unit]:
    """Measure the best of matrix products and copies."""

    def matmul(size: int) -> Values:
        a, b = draw(machine.device, torch.bfloat16, 2, size, size).unbind()
        ms = machine.median(lambda: a @ b)
        return {"tflops": 2 * size**3 / ms / 1e9}

    def copy(megabytes: float) -> Values:
        x = draw(machine.device, torch.float32, int(megabytes * 2**18))
        y = torch.empty_like(x)
        ms = machine.median(lambda: y.copy_(x))
        return {"gb_per_s": 2 * x.nbytes / ms / 1e6}

    size = 256 if machine.tiny else 8192
    yield Unit(f"matmul_bf16_{size}", functools.partial(matmul, size))
    for megabytes in (0.25,) if machine.tiny else (4, 32, 128, 1024):
        yield Unit(f"copy_{megabytes}MB", functools.partial(copy, megabytes))


def candidates(d: int, size: int, sm: int) -> Iterator[Tiles]:
    """List tiles that fit in shared memory."""
    for numbers in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4)):
        tiles = Tiles(*numbers)
        if shared_bytes(tiles, d, size) <= SHARED_LIMIT.get(sm, 99 << 10):
            yield tiles


def tune(machine: Machine) -> Iterator[Unit]:
    """Time every candidate on random lists at 70 % sparsity, key blocks of 128."""
    tokens, heads = (256, 1) if machine.tiny else (16384, 24)
    sm = architecture(machine.device)

    def attention(d: int, dtype: torch.dtype, tiles: Tiles) -> Values:
        q, k, v = draw(machine.device, dtype, 3, 1, heads, tokens, d).unbind()
        lists = random_lists(machine, tokens, heads, 0.7, 128, 128)
        if machine.device.type != "cuda":
            return {"ms": machine.median(lambda: block_sparse_attention(q, k, v, lists))}
        from skipstep.kernels.block_sparse_attention_triton import launch_attention

        call = functools.partial(
            launch_attention,
            *(q, k, v, lists.idx, lists.cnt, None, None, None),
            block_q=128,
            block_k=128,
            scale=d**-0.5,
            skip_log2=None,
            tiles=tiles,
            upcast_dot=False,
            precision="ieee",
        )
        return {"ms": machine.median(call), "tiles": vars(tiles)}

    def quantised(d: int, dtype: torch.dtype, tiles: Tiles) -> Values:
        q, k, v = draw(machine.device, torch.bfloat16, 3, 1, heads, tokens, d).unbind()
        lists = random_lists(machine, tokens, heads, 0.7, 128, 64)
        if machine.device.type != "cuda":
            return {"ms": machine.median(lambda: quantized_attention(q, k, v, lists))}
        from skipstep.kernels.quant_attention_triton import launch_quantized

        quant = quantize_qk(q, k)
        call = functools.partial(
            launch_quantized,
            *(quant.q8, quant.q_scale, quant.k8, quant.k_scale, None, v),
            *(lists.idx, lists.cnt, None, None, None),
            block_q=128,
            block_k=64,
            scale=d**-0.5,
            scale_per_block=True,
            tiles=tiles,
            upcast_dot=False,
        )
        return {"ms": machine.median(call), "tiles": vars(tiles)}

    for op, measure, dtype in (
        ("block_sparse_attention", attention, torch.bfloat16),
        ("quantized_attention", quantised, torch.int8),
    ):
        for d in (64, 128):
            for tiles in itertools.islice(candidates(d, 2, sm), 2 if machine.tiny else None):
                if op == "quantized_attention" and tiles.block_n > 64:
                    continue
                key = "/".join([key_of(op, d, dtype), *map(str, vars(tiles).values())])
                yield Unit(key, functools.partial(measure, d, dtype, tiles))


def random_lists(
    machine: Machine, tokens: int, heads: int, sparsity: float, block_q: int, block_k: int
) -> BlockLists:
    """Keep random blocks, equally many in every row."""
    nq, nk = blocks_of(tokens, block_q), blocks_of(tokens, block_k)
    scores = draw(machine.device, torch.float32, 1, heads, nq, nk)
    keep = max(1, round(nk * (1 - sparsity)))
    return from_topk(scores, keep, block_q=block_q, block_k=block_k)


def ragged_lists(machine: Machine, tokens: int, heads: int, sparsity: float) -> BlockLists:
    """Keep random blocks, from none to twice as many as the mean per row, longest lists first."""
    nq, nk = blocks_of(tokens, 128), blocks_of(tokens, 64)
    share = 2 * (1 - sparsity) * uniform(machine.device, 1, heads, nq, 1, seed=0)
    chance = uniform(machine.device, 1, heads, nq, nk, seed=1)
    return longest_first(from_bool(chance < share), 1, heads)


def band_lists(machine: Machine, tokens: int, heads: int, sparsity: float) -> BlockLists:
    """Keep a band around the diagonal, the same in all heads."""
    nq, nk = blocks_of(tokens, 128), blocks_of(tokens, 64)
    rows = torch.arange(nq, device=machine.device)[:, None] * 128 + 64
    columns = torch.arange(nk, device=machine.device) * 64 + 32
    width = tokens * (1 - sparsity**0.5)
    return from_bool(((rows - columns).abs() <= width)[None, None])


def kept_flops(lists: BlockLists, heads: int, d: int) -> float:
    """Return the floating-point operations of the kept blocks of one batch entry."""
    pairs = float(lists.cnt.expand(1, heads, -1).sum()) * lists.block_q * lists.block_k
    return 4 * d * pairs


def dense_baselines(
    machine: Machine, q: Tensor, k: Tensor, v: Tensor
) -> Mapping[str, Callable[[], object]]:
    """Return the dense attentions that torch and installed packages offer here."""

    def with_backend(backend: SDPBackend) -> object:
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(q, k, v)

    if machine.device.type != "cuda":
        return {"sdpa": lambda: scaled_dot_product_attention(q, k, v)}
    found: dict[str, Callable[[], object]] = {
        "sdpa_cudnn": lambda: with_backend(SDPBackend.CUDNN_ATTENTION),
        "sdpa_flash": lambda: with_backend(SDPBackend.FLASH_ATTENTION),
    }
    if importlib.util.find_spec("sageattention"):
        sage = importlib.import_module("sageattention").sageattn
        found["sageattention"] = lambda: sage(q, k, v)
    return found


def timed_or_why(machine: Machine, call: Callable[[], object]) -> float | str:
    """Return the median time of a baseline, or why it does not run."""
    try:
        return machine.median(call)
    except RuntimeError as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:80]}"


def sparse(machine: Machine) -> Iterator[Unit]:
    """Measure block-sparse attention by length, head dim, sparsity and kind of mask."""
    kinds: dict[str, Callable[..., BlockLists]] = {
        "uniform": functools.partial(random_lists, block_q=128, block_k=64),
        "ragged": ragged_lists,
        "band": band_lists,
    }

    def dense(tokens: int, heads: int, d: int) -> Values:
        q, k, v = draw(machine.device, torch.bfloat16, 3, 1, heads, tokens, d).unbind()
        baselines = dense_baselines(machine, q, k, v)
        times = {name: timed_or_why(machine, call) for name, call in baselines.items()}
        lists = all_blocks(tokens, tokens, device=machine.device)
        ms = machine.median(lambda: block_sparse_attention(q, k, v, lists))
        return {"ms": ms, "tflops": 4 * d * heads * tokens**2 / ms / 1e9, "baselines": times}

    def one(tokens: int, heads: int, d: int, sparsity: float, kind: str) -> Values:
        q, k, v = draw(machine.device, torch.bfloat16, 3, 1, heads, tokens, d).unbind()
        build = functools.partial(kinds[kind], machine, tokens, heads, sparsity)
        lists = build()
        low, ms, high = machine.milliseconds(lambda: block_sparse_attention(q, k, v, lists))
        return {
            "ms": ms,
            "ms_20": low,
            "ms_80": high,
            "density": float(lists.density()),
            "tflops": kept_flops(lists, heads, d) / ms / 1e9,
            "ms_lists": machine.median(build),
        }

    def flex(tokens: int, heads: int, d: int, sparsity: float) -> Values:
        from torch.nn.attention.flex_attention import flex_attention

        q, k, v = draw(machine.device, torch.bfloat16, 3, 1, heads, tokens, d).unbind()
        lists = random_lists(machine, tokens, heads, sparsity, 128, 128)
        mask = lists.to_flex_blockmask(tokens, tokens)
        compiled = torch.compile(flex_attention)
        ours = block_sparse_attention(q, k, v, lists).float()
        theirs = compiled(q, k, v, block_mask=mask).float()
        return {
            "ms": machine.median(lambda: compiled(q, k, v, block_mask=mask)),
            "ms_ours": machine.median(lambda: block_sparse_attention(q, k, v, lists)),
            "difference": float((ours - theirs).norm() / theirs.norm()),
        }

    lengths = (256,) if machine.tiny else (8192, 32760, 75600)
    heads = 1 if machine.tiny else 24
    for d, tokens in itertools.product((64, 128), lengths):
        yield Unit(f"n{tokens}_d{d}_dense", functools.partial(dense, tokens, heads, d))
        for sparsity, kind in itertools.product((0.5, 0.7, 0.8, 0.9, 0.95), kinds):
            name = f"n{tokens}_d{d}_{kind}_{sparsity}"
            yield Unit(name, functools.partial(one, tokens, heads, d, sparsity, kind))
    if not machine.tiny:
        yield Unit("n32768_d128_flex_0.7", functools.partial(flex, 32768, heads, 128, 0.7))


def quantised(machine: Machine) -> Iterator[Unit]:
    """Measure int8 scores on all keys, the kernel alone and with the quantisation before it."""

    def one(tokens: int, heads: int, d: int, settings: dict[str, Any]) -> Values:
        q, k, v = draw(machine.device, torch.bfloat16, 3, 1, heads, tokens, d).unbind()
        call = functools.partial(quantized_attention, q, k, v, **settings)
        flops = 4 * d * heads * tokens**2
        ms, quantising = machine.median(call), machine.median(lambda: quantize_qk(q, k))
        baselines = dense_baselines(machine, q, k, v)
        return {
            "ms": ms,
            "ms_quantise": quantising,
            "tops": flops / ms / 1e9,
            "tops_kernel": flops / max(ms - quantising, 1e-9) / 1e9,
            "baselines": {name: timed_or_why(machine, c) for name, c in baselines.items()},
        }

    heads = 1 if machine.tiny else 24
    settings: dict[str, dict[str, Any]] = {"int8": {}, "int8_fp8": {"pv": "fp8"}}
    for d, tokens in itertools.product((64, 128), (256,) if machine.tiny else (8192, 32768)):
        for label, chosen in settings.items():
            name = f"n{tokens}_d{d}_{label}"
            yield Unit(name, functools.partial(one, tokens, heads, d, chosen))


def elementwise(machine: Machine) -> Iterator[Unit]:
    """Measure every kernel that is not attention: bytes in and out over time."""

    def measure(case: Case) -> Values:
        inputs = case.make(machine.device, machine.tiny)
        outputs = case.call(*inputs)
        moved = sum(x.nbytes for x in (*inputs, *outputs))
        ms = machine.median(lambda: case.call(*inputs))
        plain = functools.partial(case.call, *inputs, backend="torch")
        source = torch.empty(moved // 2, dtype=torch.uint8, device=machine.device)
        target = torch.empty_like(source)
        return {
            "ms": ms,
            "megabytes": moved / 1e6,
            "gb_per_s": moved / ms / 1e6,
            "of_copy": machine.median(lambda: target.copy_(source)) / ms,
            "ms_torch": machine.median(plain),
        }

    for case in CASES:
        if not case.op.endswith("attention"):
            yield Unit(case.name, functools.partial(measure, case))


def splat(machine: Machine) -> Iterator[Unit]:
    """Measure the renderer."""
    from skipstep.benchmarks.gpu.splat_slice import units

    yield from units(machine)


SLICES: Mapping[str, Callable[[Machine], Iterator[Unit]]] = {
    "correctness": correctness,
    "roofline": roofline,
    "tune": tune,
    "sparse": sparse,
    "quantised": quantised,
    "elementwise": elementwise,
    "splat": splat,
}


def best_tiles(times: Mapping[str, Values]) -> dict[str, Tiles]:
    """Return the fastest tiles of each key from the records of `tune`."""
    groups: dict[str, list[Values]] = {}
    for name, values in times.items():
        if "tiles" in values:
            groups.setdefault("/".join(name.split("/")[:3]), []).append(values)
    fastest = {key: min(group, key=lambda v: float(v["ms"])) for key, group in groups.items()}
    return {key: Tiles(**values["tiles"]) for key, values in fastest.items()}
