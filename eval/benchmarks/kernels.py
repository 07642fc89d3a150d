"""What multiplies by a weight here: ours and its peers, each from the same float32 weight."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eval.benchmarks import ggml
from eval.benchmarks.limits import sweep
from eval.benchmarks.timing import Call
from mote_quant.formats import Codes
from mote_quant.kernels import PackedLinear
from mote_quant.recipe import IntegerBits, TernaryBits
from mote_quant.recipe.schema import IntegerName
from mote_quant.steps.quantize.methods import rtn
from mote_quant.ternary.quantize import absmean_scale, scaled_codes

Prepared = Callable[[Tensor], Call]
"""An input [tokens, in] -> the product with it, ready to be timed."""


@dataclass(frozen=True)
class Kernel:
    """`pack` turns a float32 weight [out, in] into what the kernel reads, of `bits` a weight; `load` copies that.

    `dtype` is what it takes for input, `missing` why it cannot run here, `fits` whether it can take a shape.
    """

    name: str
    bits: float
    pack: Callable[[Tensor], Any]
    load: Callable[[Any], Prepared]
    dtype: torch.dtype = torch.bfloat16
    missing: str | None = None
    fits: Callable[[tuple[int, int]], bool] = lambda shape: True


def _module(stored: nn.Module) -> Prepared:
    module = copy.deepcopy(stored)
    return lambda x: partial(module, x)


def ternary(packing: Literal["2bit", "base3"], weight: Tensor) -> PackedLinear:
    """As a MoTE recipe packs a routed expert."""
    spec = TernaryBits(format="ternary", packing=packing)
    scale = absmean_scale(weight, spec)
    return PackedLinear.pack(spec, Codes(scaled_codes(weight, scale, spec), scale), None, torch.bfloat16)


def integer(name: IntegerName, weight: Tensor) -> PackedLinear:
    """Groups of 128."""
    spec = IntegerBits(format=name, group_size=128)
    return PackedLinear.pack(spec, rtn(weight, spec), None, torch.bfloat16)


def _read_packed(stored: PackedLinear) -> Prepared:
    data = stored.get_buffer("weight").clone()
    call = sweep(data)
    # Holding on to `data` keeps the address valid.
    return lambda x: lambda: (call(), data)


def _dense(stored: Tensor) -> Prepared:
    weight = stored.clone()
    return lambda x: partial(F.linear, x, weight)


def _dynamic_int8(engine: str) -> Callable[[Tensor], Prepared]:
    def load(weight: Tensor) -> Prepared:
        torch.backends.quantized.engine = engine
        scale = float(weight.abs().max()) / 127
        packed = torch.ops.quantized.linear_prepack(torch.quantize_per_tensor(weight, scale, 0, torch.qint8), None)
        return lambda x: partial(torch.ops.quantized.linear_dynamic, x, packed, False)

    return load


_INT4_GROUP = 128


def _pack_int4pack(weight: Tensor) -> tuple[Tensor, Tensor]:
    grouped = weight.view(len(weight), -1, _INT4_GROUP)
    scales = grouped.abs().amax(-1) / 7
    codes = (grouped / scales.unsqueeze(-1)).round().add(8).clamp(0, 15).flatten(1).int()
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return packed, torch.stack([scales, torch.zeros_like(scales)], -1).transpose(0, 1).contiguous().bfloat16()


def _load_int4pack(stored: tuple[Tensor, Tensor]) -> Prepared:
    packed, scales = (part.clone() for part in stored)
    return lambda x: partial(torch.ops.aten._weight_int4pack_mm_for_cpu, x, packed, _INT4_GROUP, scales)


def _torchao(config: str, weight: Tensor) -> nn.Module:
    import torchao.quantization as ao

    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, dtype=torch.bfloat16)
    linear.weight = nn.Parameter(weight.bfloat16(), requires_grad=False)
    module = nn.Sequential(linear)
    ao.quantize_(module, getattr(ao, config)())
    return module


def _bitsandbytes(weight: Tensor) -> nn.Module:
    import bitsandbytes as bnb

    rows, columns = weight.shape
    module: nn.Module = bnb.nn.Linear4bit(columns, rows, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    module.weight = bnb.nn.Params4bit(weight, quant_type="nf4", requires_grad=False)
    return module.to("cpu").eval()


def _without(package: str) -> str | None:
    return None if find_spec(package) else f"{package} is not installed: it comes with the extra `bench`"


def _ggml_kernel(kind: str, bits: float, place: str = "") -> Kernel:
    folder, name = ggml.find(), f"ggml {kind}{place}"
    if not isinstance(folder, Path):
        return Kernel(name, bits, lambda weight: None, lambda stored: lambda x: lambda: None, missing=folder)
    library = ggml.library(folder)
    where = library.buffer_types().get(place)

    def load(stored: tuple[Tensor, tuple[int, int]]) -> Prepared:
        weight = ggml.Weight(library, kind, stored[1], stored[0], where or 0)
        return lambda x: weight.prepared(x)[0]

    return Kernel(
        name, bits,
        pack=lambda weight: (ggml.quantized(library, kind, weight), tuple(weight.shape)),
        load=load,
        dtype=torch.float32,
        missing=None if where else "this ggml does not rearrange weights for this processor",
        fits=lambda shape: shape[1] % (256 if kind.startswith("TQ") else 32) == 0 and shape[0] % 8 == 0,
    )  # fmt: skip


OURS = (
    Kernel("2bit", 2.0, partial(ternary, "2bit"), _module),
    Kernel("1.6bit", 1.6, partial(ternary, "base3"), _module),
    Kernel("int4", 4.125, partial(integer, "int4"), _module),
    Kernel("int8", 8.125, partial(integer, "int8"), _module),
)


def peers() -> tuple[Kernel, ...]:
    """All of them, those that are missing here too."""
    ao, bnb = _without("torchao"), _without("bitsandbytes")
    return (
        Kernel("read sweep", 2.0, partial(ternary, "2bit"), _read_packed),
        Kernel("torch bf16", 16.0, Tensor.bfloat16, _dense),
        Kernel("torch int8 x86", 8.0, Tensor.clone, _dynamic_int8("x86"), torch.float32),
        Kernel("torch int8 onednn", 8.0, Tensor.clone, _dynamic_int8("onednn"), torch.float32),
        Kernel("torch int4pack", 4.25, _pack_int4pack, _load_int4pack),
        Kernel("torchao int8 weight-only", 8.0, partial(_torchao, "Int8WeightOnlyConfig"), _module, missing=ao),
        Kernel("bitsandbytes nf4", 4.5, _bitsandbytes, _module, missing=bnb),
        _ggml_kernel("TQ2_0", 2.0625),
        _ggml_kernel("TQ1_0", 1.6875),
        _ggml_kernel("Q4_0", 4.5),
        _ggml_kernel("Q4_0", 4.5, " repacked"),
    )
