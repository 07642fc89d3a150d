"""The figures to reach: what each id of bench.json means, and the ratio asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LAYER, ROUTED = "MoTE layer", "routed FFN"
TWO_BIT, AMX_OFF = "2bit", "2bit, AMX off"
"""Names of ours, where an id has several."""
AT_MOST = frozenset({"resident-vs-stored", "qat-step-vs-fp-moe", "qat-step-vs-unquantized"})
"""Ids whose ratio is ours / peer and has an upper bound."""


@dataclass(frozen=True)
class Target:
    """`with_amx` and `without` are the bounds by machine; None where nothing is asked. `where` narrows the id down."""

    id: str
    what: str
    with_amx: float | None
    without: float | None
    where: Mapping[str, Any] = field(default_factory=dict)

    def bound(self, amx: bool) -> float | None:
        """What is asked on a machine with or without AMX."""
        return self.with_amx if amx else self.without

    def met(self, ratio: float, bound: float) -> bool:
        """Whether a ratio is good enough."""
        return ratio <= bound if self.id in AT_MOST else ratio >= bound


def _same(id: str, what: str, bound: float, **where: Any) -> Target:
    return Target(id, what, bound, bound, where)


TARGETS = (
    _same("decode-2bit-vs-torch-bf16", "1 token: 2-bit ternary vs torch bf16", 12.0),
    _same("decode-2bit-vs-read-limit", "the same vs only reading the packed bytes", 0.9),
    _same("decode-1.6bit-vs-2bit", "1 token: 1.6-bit vs our 2-bit", 0.95),
    _same("decode-vs-llamacpp-tq2_0", "1 token: 2-bit vs llama.cpp TQ2_0", 1.5),
    _same("decode-1.6bit-vs-llamacpp-tq1_0", "1 token: 1.6-bit vs llama.cpp TQ1_0", 2.4),
    Target("tokens32-vs-torch-bf16", "32 tokens: 2-bit vs torch bf16", 4.0, 1.8, {"ours": TWO_BIT}),
    Target("tokens32-vs-torch-bf16", "32 tokens, AMX off: 2-bit vs torch bf16", 1.8, None, {"ours": AMX_OFF}),
    _same("tokens32-vs-ggml-ternary", "32 tokens: 2-bit vs the best ternary type of ggml", 3.0),
    Target("tokens512-vs-torch-bf16", "512 tokens: 2-bit vs torch bf16 (asked with AMX: 1.6x)", 1.6, None),
    _same("tokens512-noamx-vs-torch-int8", "512 tokens, no AMX: 2-bit vs torch int8 dynamic", 0.9),
    _same("layer-vs-fp-moe", "1 token: MoTE layer vs full-precision MoE top-2 layer", 5.0, ours=LAYER),
    _same("layer-vs-fp-moe", "1 token: routed FFN vs torch bf16 expert loop", 12.0, ours=ROUTED, tokens=1),
    _same("layer-vs-fp-moe", "32 tokens: routed FFN vs torch bf16 expert loop", 5.0, ours=ROUTED, tokens=32),
    _same("layer-vs-fp-moe", "512 tokens: routed FFN vs torch bf16 expert loop", 2.0, ours=ROUTED, tokens=512),
    _same("model-decode-vs-fp-moe", "whole model, decode: MoTE+int4 vs bf16 MoE", 4.0),
    _same("model-decode-vs-dense-bf16", "whole model, decode: MoTE+int4 vs bf16 dense", 2.5),
    _same("resident-vs-stored", "MoTE+int4, loaded: resident vs stored bytes", 1.05),
    _same("qat-step-vs-fp-moe", "training step, fp32: MoTE with QAT vs full-precision MoE", 1.0, dtype="float32"),
    _same("qat-step-vs-fp-moe", "training step, bf16: MoTE with QAT vs full-precision MoE", 1.0, dtype="bfloat16"),
    _same("qat-step-vs-unquantized", "MoTE block with vs without fake-quantization, fp32", 1.05, dtype="float32"),
    _same("qat-step-vs-unquantized", "MoTE block with vs without fake-quantization, bf16", 1.15, dtype="bfloat16"),
    _same("threads2-vs-1", "1 token: two threads vs one", 1.7, tokens=1),
    _same("threads2-vs-1", "512 tokens: two threads vs one", 1.7, tokens=512),
)


def target_of(id: str, ours: str, tokens: int | None, dtype: str) -> Target | None:
    """The target that a row is measured by; None for a figure nobody asked for."""
    row = {"ours": ours, "tokens": tokens, "dtype": dtype}
    fitting = (target for target in TARGETS if target.id == id)
    return next((target for target in fitting if all(row[key] == value for key, value in target.where.items())), None)
