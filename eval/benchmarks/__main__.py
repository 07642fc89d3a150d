"""Time packed linear layers beside torch in one process: `make bench` writes eval/results/bench.json, prints a table.

Ours and the peer are called in turn, round by round, on one thread; figures are medians, ratios are peer / ours
(above 1 we are faster). Today ours is the plain-torch reference, which unpacks the weight on every call.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.formats import Codes
from mote_quant.kernels import PackedLinear
from mote_quant.recipe import IntegerBits, TernaryBits
from mote_quant.steps.quantize.methods import rtn
from mote_quant.ternary.quantize import absmean_scale, scaled_codes

OUTPUT = Path(__file__).parent.parent / "results" / "bench.json"
SHAPES = {"gate_up": (8960, 1536), "down": (1536, 8960)}
"""(rows, columns) of the Qwen2.5-1.5B feed-forward network."""
TOKENS = (1, 32)
ROUNDS = 7
INT4 = IntegerBits(format="int4", group_size=128)


def ternary(packing: Any) -> Callable[[Tensor], PackedLinear]:
    """A packed ternary layer of a weight."""

    def pack(weight: Tensor) -> PackedLinear:
        spec = TernaryBits(format="ternary", packing=packing)
        scale = absmean_scale(weight, spec)
        return PackedLinear.pack(spec, Codes(scaled_codes(weight, scale, spec), scale), None, torch.bfloat16)

    return pack


def int4(weight: Tensor) -> PackedLinear:
    """A packed int4 layer of a weight."""
    codes = rtn(weight, INT4)
    return PackedLinear.pack(INT4, codes, None, torch.bfloat16)


Packer = Callable[[Tensor], PackedLinear]
LAYERS: dict[str, Packer] = {"2bit": ternary("2bit"), "1.6bit": ternary("base3"), "int4": int4}


def compare(ours: Callable[[], Any], peer: Callable[[], Any]) -> tuple[list[float], list[float]]:
    """Seconds of each, called in turn after one warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    for round_ in range(ROUNDS + 1):
        for call, kept in zip((ours, peer), times, strict=True):
            started = time.perf_counter()
            call()
            if round_:
                kept.append(time.perf_counter() - started)
    return times


def measure(name: str, shape: tuple[int, int], tokens: int) -> dict[str, Any]:
    """One row of bench.json."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * 0.02
    layer, dense = LAYERS[name](weight), weight.to(torch.bfloat16)
    x = torch.randn(tokens, shape[1], generator=generator).to(torch.bfloat16)
    with torch.no_grad():
        ours, peer = compare(lambda: layer(x), lambda: F.linear(x, dense))
    kind = "decode" if tokens == 1 else f"tokens{tokens}"
    return {
        "id": f"{kind}-{name}-vs-torch-bf16", "shape": list(shape), "threads": 1, "tokens": tokens,
        "ours_s": statistics.median(ours), "peer": "torch bf16", "peer_s": statistics.median(peer),
        "ratio": statistics.median(peer) / statistics.median(ours),
        "ratio_spread": [min(peer) / max(ours), max(peer) / min(ours)],
    }  # fmt: skip


def machine() -> dict[str, Any]:
    """What it ran on, with the read bandwidth of one thread (a sum over 256 MB) as the limit."""
    data = torch.ones(1 << 26)
    data.sum()
    started = time.perf_counter()
    data.sum()
    bandwidth = data.nbytes / (time.perf_counter() - started) / 1e9
    cpu = torch.backends.cpu.get_cpu_capability()
    return {"machine": platform.machine(), "cpu": cpu, "torch": torch.__version__, "read_gb_per_s": round(bandwidth, 1)}


def main() -> None:
    """Measure, write, print."""
    torch.set_num_threads(1)
    rows = [measure(name, shape, tokens) for name in LAYERS for shape in SHAPES.values() for tokens in TOKENS]
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(json.dumps(rows, indent=2) + "\n")
    OUTPUT.with_name("bench-machine.json").write_text(json.dumps(machine(), indent=2) + "\n")
    for row in rows:
        print(f"{row['id']:32} {row['shape']!s:14} ours {1e3 * row['ours_s']:8.2f} ms  "
              f"torch bf16 {1e3 * row['peer_s']:8.2f} ms  {row['ratio']:.3f}x")  # fmt: skip


if __name__ == "__main__":
    main()
