"""Machine code for GPUs that are not here: what the interpreter would take and the compiler would not."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from mote_quant.kernels import triton as kernels

triton = pytest.importorskip("triton")
if kernels.interpreted():
    pytest.skip("the interpreter was asked for: nothing is compiled", allow_module_level=True)
if "nvidia" not in triton.backends.backends:
    pytest.skip("this triton has no compiler for NVIDIA GPUs", allow_module_level=True)

from mote_quant.kernels.triton import activation, integer, routed_rows, routed_tiles, ternary  # noqa: E402

TYPES = {
    "x": "*bf16", "weight": "*u8", "weight_scale": "*fp32", "zeros": "*u8", "planes": "*i8", "scales": "*fp32",
    "sums": "*i32", "bias": "*bf16", "out": "*bf16",
}  # fmt: skip
ROUTED = {
    "weights": "*i64", "like": "*u8", "scales": "*i64", "scale": "*fp32", "biases": "*i64", "bias": "*bf16",
    "planes": "*i8", "x_scales": "*fp32", "x_sums": "*i32", "out": "*bf16", "order": "*i64", "offsets": "*i32",
    "chosen": "*i64", "gates": "*fp32",
}  # fmt: skip
WORDS = {"weight": "*i32", "like": "*i32", "planes": "*i32"}
FLOATS = {"planes": "*bf16"}
TWO_BIT, BASE3 = {"bits": 2, "digits": 4}, {"bits": 0, "digits": 5}
INT8 = TWO_BIT | {"integer": True}
NO_CODES = {"integer": False, "scales": None, "sums": None}
NO_EXPERT_CODES = {"integer": False, "x_scales": None, "x_sums": None}
INT4 = {"bits": 4, "digits": 2, "run": 64, "scales": None}
EXPERTS = INT8 | {"most": 4, "entries": 2, "activation": "silu", "aligned": True, "words": True}
EVEN = {"rows", "width", "plane"}
SIZES = ("rows", "width", "columns", "stride", "tokens", "groups", "experts", "top_k", "scale_stride", "bucket")
DP4A, MMA8, MMA16 = "dp4a.u32.s32", "s32.s8.s8", "f32.bf16.bf16"


@dataclass(frozen=True)
class Case:
    """A kernel, the types of its arguments, its constants, and an instruction that it is all about."""

    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    instruction: str


CASES = {
    "int8 codes": Case(
        activation.lay_out, TYPES, {"factors": None, "digits": 4, "quantize": True, "block": 1024}, "div.rn.f32"
    ),
    "planes": Case(
        activation.lay_out, TYPES | FLOATS | {"factors": "*fp16"},
        {"scales": None, "sums": None, "digits": 2, "quantize": False, "block": 512}, "st.global",
    ),
    "ternary tiles": Case(ternary.multiply_tiles, TYPES, INT8, MMA8),
    "base-3 tiles": Case(ternary.multiply_tiles, TYPES | FLOATS, NO_CODES | BASE3, MMA16),
    "ternary rows": Case(ternary.multiply_rows, TYPES | WORDS, INT8 | {"words": True}, DP4A),
    "base-3 rows": Case(ternary.multiply_rows, TYPES | WORDS, INT8 | BASE3 | {"words": True}, DP4A),
    "ternary rows of floats": Case(ternary.multiply_rows, TYPES | FLOATS, TWO_BIT | NO_CODES | {"words": False}, "fma"),
    "int4 tiles": Case(
        integer.multiply_tiles, TYPES | FLOATS, INT4 | {"zeros": None, "offset": 8, "packed_zeros": False}, MMA16
    ),
    "int4 rows with zero points": Case(
        integer.multiply_rows, TYPES | FLOATS, INT4 | {"offset": 0, "packed_zeros": True}, "fma"
    ),
    "expert tiles": Case(routed_tiles.rise_tiles, ROUTED, EXPERTS, MMA8),
    "expert tiles of floats": Case(
        routed_tiles.rise_tiles, ROUTED | FLOATS, EXPERTS | NO_EXPERT_CODES | BASE3 | {"activation": "gelu"}, MMA16
    ),
    "expert tiles, down": Case(routed_tiles.fall_tiles, ROUTED, EXPERTS, MMA8),
    "expert rows": Case(routed_rows.rise_rows, ROUTED | WORDS, EXPERTS, DP4A),
    "expert rows, down": Case(routed_rows.fall_rows, ROUTED | WORDS, EXPERTS, DP4A),
}  # fmt: skip


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", CASES)
def test_kernels_compile_for_gpus(name, capability, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case = CASES[name]
    config = next(iter(getattr(case.kernel, "configs", [triton.Config({})])))
    ptx = compiled(case, config, capability)
    assert f".target sm_{capability}" in ptx
    assert case.instruction in ptx


@pytest.mark.parametrize("name", CASES)
def test_kernels_compile_for_sizes_of_one(name, tmp_path, monkeypatch):
    """At launch an argument that is 1 becomes a constant."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    case = CASES[name]
    single = replace(case, constants=case.constants | dict.fromkeys(SIZES, 1))
    config = next(iter(getattr(case.kernel, "configs", [triton.Config({})])))
    assert ".visible .entry" in compiled(single, config, 90)


def compiled(case, config, capability) -> str:
    """PTX, with the alignments that a launch finds in usual shapes."""
    function = case.kernel.fn if hasattr(case.kernel, "configs") else case.kernel
    names = function.arg_names
    constants = {name: value for name, value in (case.constants | config.kwargs).items() if name in names}
    types = {name: "constexpr" if name in constants else case.types.get(name, "i32") for name in names}
    aligned = [i for i, name in enumerate(names) if types[name][0] == "*" or (name in EVEN and types[name] == "i32")]
    source = triton.compiler.ASTSource(
        function, types, constants, {(index,): [["tt.divisibility", 16]] for index in aligned}
    )
    target = triton.backends.compiler.GPUTarget("cuda", capability, 32)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    return triton.compile(source, target=target, options=options).asm["ptx"]
