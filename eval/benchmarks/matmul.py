"""(a) One product with a weight: ours beside torch, torchao, bitsandbytes and ggml, by shape and number of tokens."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from eval.benchmarks.kernels import OURS, Kernel, Prepared, peers
from eval.benchmarks.rows import Row, compared, summary
from eval.benchmarks.scale import Scale, Shape
from eval.benchmarks.targets import AMX_OFF, TWO_BIT
from eval.benchmarks.timing import Call, Times, race
from mote_quant.kernels.cpu import library

BF16, OTHER = "torch bf16", "1.6bit"
INT4_PEERS = ("torch int4pack", "bitsandbytes nf4", "ggml Q4_0", "ggml Q4_0 repacked")
INT8_PEERS = ("torch int8 x86", "torch int8 onednn", "torchao int8 weight-only")
MATMUL, THREADS = "matmul-vs-torch-bf16", "threads2-vs-1"
COLD_TOKENS = 32
"""Up to so many tokens weights come from memory; beyond, two copies take turns."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Figure:
    """An id of bench.json: which kernel of ours, at how many tokens, beside the fastest of which peers."""

    id: str
    tokens: int
    ours: str
    peers: tuple[str, ...]


def _figures() -> Iterator[Figure]:
    yield Figure("decode-2bit-vs-torch-bf16", 1, TWO_BIT, (BF16,))
    yield Figure("decode-2bit-vs-read-limit", 1, TWO_BIT, ("read sweep",))
    yield Figure("decode-1.6bit-vs-2bit", 1, OTHER, (TWO_BIT,))
    yield Figure("decode-vs-llamacpp-tq2_0", 1, TWO_BIT, ("ggml TQ2_0",))
    yield Figure("decode-1.6bit-vs-llamacpp-tq1_0", 1, OTHER, ("ggml TQ1_0",))
    yield Figure("tokens32-vs-torch-bf16", 32, TWO_BIT, (BF16,))
    yield Figure("tokens32-vs-torch-bf16", 32, AMX_OFF, (BF16,))
    yield Figure("tokens32-vs-ggml-ternary", 32, TWO_BIT, ("ggml TQ2_0", "ggml TQ1_0"))
    yield Figure("tokens512-vs-torch-bf16", 512, TWO_BIT, (BF16,))
    # oneDNN would use AMX where there is some: then only the engine without it is a peer.
    no_amx = (AMX_OFF, ("torch int8 x86",)) if _on_amx() else (TWO_BIT, INT8_PEERS[:2])
    yield Figure("tokens512-noamx-vs-torch-int8", 512, *no_amx)
    for tokens in (1, 8, 32, 512):
        yield Figure("int4-vs-best-4-bit-peer", tokens, "int4", INT4_PEERS)
        yield Figure("int8-vs-best-8-bit-peer", tokens, "int8", INT8_PEERS)


def rows(scale: Scale) -> list[Row]:
    """Every kernel beside torch bf16, then the figures of the table with their means, then two threads."""
    torch.set_num_threads(1)
    contenders = [kernel for kernel in (*OURS, *peers()) if kernel.missing is None]
    cells = {cell: times for shape in scale.shapes for cell, times in _measure(contenders, shape, scale)}
    made = [row for (shape, tokens), times in cells.items() for row in _beside_bf16(times, shape, tokens)]
    for figure in _figures():
        single = [_row(figure, times, shape) for (shape, tokens), times in cells.items() if tokens == figure.tokens]
        found = [row for row in single if row is not None]
        head = [row for row in found if row.shape in scale.headline]
        made += found + ([summary(head)] if head else [])
    return made + _threads(scale)


def skipped() -> dict[str, str]:
    """Which peers are not here, and why."""
    return {kernel.name: kernel.missing for kernel in peers() if kernel.missing is not None}


def _measure(contenders: Sequence[Kernel], shape: Shape, scale: Scale) -> Iterator[tuple[tuple[Shape, int], Times]]:
    weight = _weight(shape)
    copies = {k.name: (k, _copies(k, weight, scale.copies_bytes)) for k in contenders if k.fits(shape)}
    for tokens in scale.tokens:
        x = torch.randn(tokens, shape[1])
        with torch.no_grad():
            calls = {name: _calls(loaded, x.to(kernel.dtype), tokens) for name, (kernel, loaded) in copies.items()}
            times = race(calls | _without_amx(calls), scale.cell_seconds, rounds=scale.rounds)
        _log.info("%s at %d tokens", shape, tokens)
        yield (shape, tokens), times


def _weight(shape: Shape) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 0.02


def _copies(kernel: Kernel, weight: torch.Tensor, wanted: int) -> list[Prepared]:
    stored = kernel.pack(weight)
    return [kernel.load(stored) for _ in range(max(2, math.ceil(wanted / (weight.numel() * kernel.bits / 8))))]


def _calls(loaded: Sequence[Prepared], x: torch.Tensor, tokens: int) -> list[Call]:
    return [prepare(x) for prepare in (loaded if tokens <= COLD_TOKENS else loaded[:2])]


def _without_amx(calls: Mapping[str, list[Call]]) -> dict[str, list[Call]]:
    if not _on_amx():
        return {}

    def held_back(call: Call) -> None:
        library.set_level(library.Level.avx512)
        call()
        library.set_level(library.Level.amx)

    return {AMX_OFF: [partial(held_back, call) for call in calls[TWO_BIT]]}


def _on_amx() -> bool:
    return library.level() is library.Level.amx


def _beside_bf16(times: Times, shape: Shape, tokens: int) -> list[Row]:
    names = [name for name in times if name not in (BF16, "read sweep")]
    return [compared(MATMUL, name, BF16, times, shape=shape, tokens=tokens) for name in names]


def _row(figure: Figure, times: Times, shape: Shape) -> Row | None:
    present = [peer for peer in figure.peers if peer in times]
    if figure.ours not in times or not present:
        return None
    best = min(present, key=lambda peer: statistics.median(times[peer]))
    work = _least(figure.ours, shape, figure.tokens)
    return compared(figure.id, figure.ours, best, times, shape=shape, tokens=figure.tokens, **work)


def _least(ours: str, shape: Shape, tokens: int) -> dict[str, int]:
    """What a product of ours has to read and to do."""
    bits = next(kernel.bits for kernel in OURS if kernel.name == ours.removesuffix(", AMX off"))
    weights = shape[0] * shape[1]
    return {"read_bytes": round(weights * bits / 8), "operations": 2 * weights * tokens}


def _threads(scale: Scale) -> list[Row]:
    """Two threads beside one, by the time that passes; they are torch's own."""
    made = []
    for tokens in (1, 512):
        single = [_two_threads(shape, tokens, scale) for shape in scale.headline]
        made += [*single, summary(single)]
    torch.set_num_threads(1)
    return made


def _two_threads(shape: Shape, tokens: int, scale: Scale) -> Row:
    kernel = next(kernel for kernel in OURS if kernel.name == TWO_BIT)
    x = torch.randn(tokens, shape[1]).to(kernel.dtype)
    calls = _calls(_copies(kernel, _weight(shape), scale.copies_bytes), x, tokens)

    def on(threads: int, call: Call) -> None:
        torch.set_num_threads(threads)
        call()

    contenders = {f"{count} thread{'s'[: count - 1]}": [partial(on, count, call) for call in calls] for count in (1, 2)}
    with torch.no_grad():
        times = race(contenders, scale.cell_seconds, rounds=scale.rounds, wall=True)
    work = _least(TWO_BIT, shape, tokens)
    return compared(
        THREADS, "2 threads", "1 thread", times, shape=shape, tokens=tokens, threads=2, note=TWO_BIT, **work
    )
