"""(e) The Triton kernels beside cuBLAS bf16, bitsandbytes nf4 and torch's grouped matmul, where there is a CUDA device.

Every contender is recorded in a CUDA graph that goes through its copies of the weights, so that what Python does to
launch a kernel is no part of it, and with few tokens weights come from memory, not from a cache.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.benchmarks import kernels
from eval.benchmarks.rows import Row, compared
from eval.benchmarks.timing import Call, Times
from mote_quant.kernels import PackedLinear, table
from mote_quant.kernels.experts import PackedExperts

SHAPES = ((8960, 1536), (1536, 8960))
"""(rows, columns): the feed-forward network of Qwen2.5-1.5B."""
TOKENS = (1, 8, 32, 512, 4096)
EXPERTS, HIDDEN, INNER = 4, 1536, 8960
COLD_TOKENS, COLD_BYTES, MOST_COPIES, ROUNDS = 32, 256_000_000, 64, 15
BF16, NF4, GROUPED = "cuBLAS bf16", "bitsandbytes nf4", "torch grouped_mm bf16"
_PACKERS: Mapping[str, Callable[[Tensor], PackedLinear]] = {
    "2bit": partial(kernels.ternary, "2bit"),
    "1.6bit": partial(kernels.ternary, "base3"),
    "int4": partial(kernels.integer, "int4"),
    "int8": partial(kernels.integer, "int8"),
}


def rows() -> list[dict[str, Any]]:
    """Fields of `rows.Row`; none where there is no CUDA device, for nothing can be measured there."""
    if not torch.cuda.is_available():
        return []
    with torch.no_grad():
        made = [row for shape in SHAPES for tokens in TOKENS for row in _products(shape, tokens)]
        made += [row for tokens in TOKENS for row in _experts(tokens)]
    return [asdict(row) for row in made]


def _products(shape: tuple[int, int], tokens: int) -> list[Row]:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02
    x = torch.randn(tokens, shape[1], device="cuda", dtype=torch.bfloat16)
    loaded = {name: _modules(pack(weight), tokens) for name, pack in _PACKERS.items()}
    loaded |= {BF16: _modules(_dense(weight), tokens)}
    if find_spec("bitsandbytes") is not None:
        loaded[NF4] = _modules(_nf4(weight), tokens)
    times = race({name: [partial(module, x) for module in modules] for name, modules in loaded.items()})
    more = {"shape": shape, "tokens": tokens, "note": torch.cuda.get_device_name()}
    made = [compared("gpu-vs-cublas-bf16", name, BF16, times, **more) for name in times if name != BF16]
    return made + [compared("gpu-int4-vs-bitsandbytes-nf4", "int4", NF4, times, **more) for _ in range(NF4 in times)]


def _experts(tokens: int) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)] * EXPERTS
    weights = [torch.randn(shape, generator=generator) * 0.02 for shape in shapes]
    x = torch.randn(tokens, HIDDEN, device="cuda", dtype=torch.bfloat16)
    chosen = torch.randint(EXPERTS, (tokens, 1), generator=generator).cuda()
    gates = torch.ones(tokens, 1, device="cuda")
    stacked = grouped_weights([weight.bfloat16().cuda() for weight in weights])
    contenders: dict[str, list[Call]] = {GROUPED: [partial(grouped_experts, x, chosen, gates, *stacked)]}
    packings: tuple[Literal["2bit", "base3"], ...] = ("2bit", "base3")
    for packing in packings:
        linears = [kernels.ternary(packing, weight).cuda() for weight in weights]
        count = _copies(sum(linear.get_buffer("weight").nbytes for linear in linears), tokens)
        layers = [packed_experts([copy.deepcopy(linear) for linear in linears]) for _ in range(count)]
        contenders[packing] = [partial(table.experts, x, chosen, gates, layer) for layer in layers]
    times = race(contenders)
    more = {"shape": (EXPERTS, INNER, HIDDEN), "tokens": tokens, "note": torch.cuda.get_device_name()}
    return [compared("gpu-experts-vs-grouped-mm", packing, GROUPED, times, **more) for packing in packings]


def packed_experts(linears: Sequence[PackedLinear]) -> PackedExperts:
    """Gated experts with silu, of the projections up, gate, down of each."""
    weights, scales = ([linear.get_buffer(name) for linear in linears] for name in ("weight", "weight_scale"))
    up = linears[0]
    return PackedExperts(weights, scales, [], up.format, True, up.in_features, up.out_features, "silu")


def grouped_weights(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """[E, in, 2 * inner] of up and gate and [E, inner, in] of down, of the same weights."""
    entering = [torch.cat([up, gate]).T for up, gate in zip(weights[::3], weights[1::3], strict=True)]
    return torch.stack(entering), torch.stack([down.T for down in weights[2::3]])


def grouped_experts(x: Tensor, chosen: Tensor, gates: Tensor, entering: Tensor, down: Tensor) -> Tensor:
    """The same experts by torch's grouped matmul: tokens sorted by expert, two launches for all experts."""
    top_k = chosen.shape[1]
    sorted_, order = chosen.flatten().sort(stable=True)
    numbers = torch.arange(1, len(down) + 1, device=x.device)
    ends = torch.searchsorted(sorted_, numbers, out_int32=True)
    up, gate = F.grouped_mm(x[order // top_k], entering, offs=ends).chunk(2, dim=-1)
    output = torch.empty(len(order), x.shape[1], dtype=x.dtype, device=x.device)
    output[order] = F.grouped_mm(F.silu(gate) * up, down, offs=ends)
    return (output.view(-1, top_k, x.shape[1]) * gates.unsqueeze(-1).to(x.dtype)).sum(1)


def race(contenders: Mapping[str, Sequence[Call]]) -> Times:
    """Seconds a call of each contender, round by round, by the clock of the device."""
    graphs = {name: _recorded(calls) for name, calls in contenders.items()}
    times: Times = {name: [] for name in contenders}
    for _ in range(ROUNDS):
        for name, graph in graphs.items():
            times[name].append(_timed(graph) / len(contenders[name]))
    return times


def _recorded(calls: Sequence[Call]) -> torch.cuda.CUDAGraph:
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    return graph


def _timed(graph: torch.cuda.CUDAGraph) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def _dense(weight: Tensor) -> nn.Module:
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.bfloat16, device="meta")
    linear.weight = nn.Parameter(weight.bfloat16(), requires_grad=False)
    return linear


def _nf4(weight: Tensor) -> nn.Module:
    import bitsandbytes as bnb

    rows, columns = weight.shape
    linear: nn.Module = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    linear.weight = bnb.nn.Params4bit(weight, quant_type="nf4", requires_grad=False)
    return linear


def _modules(module: nn.Module, tokens: int) -> list[nn.Module]:
    there = module.cuda()
    stored = sum(tensor.nbytes for tensor in (*there.parameters(), *there.buffers()))
    return [there, *(copy.deepcopy(there) for _ in range(_copies(stored, tokens) - 1))]


def _copies(stored: int, tokens: int) -> int:
    """As many as no cache holds together; two where weights are read for many tokens."""
    return 2 if tokens > COLD_TOKENS else max(2, min(MOST_COPIES, math.ceil(COLD_BYTES / stored)))
