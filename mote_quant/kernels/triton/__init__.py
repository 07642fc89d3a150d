"""Kernels for NVIDIA GPUs, in Triton, which is optional: it is imported when a tensor that it can take has come.

Packed weights are read as they are stored. Tests prove the results under Triton's interpreter and generate the code for
sm_80 and sm_90. Speed is not measured yet: `eval/benchmarks/gpu.py` does it where there is a CUDA device.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor

from mote_quant.kernels.experts import ACTIVATIONS, PackedExperts
from mote_quant.kernels.weight import PackedWeight
from mote_quant.recipe.schema import IntegerBits, TernaryBits

_Matmul = Callable[[Tensor, PackedWeight, Tensor | None], Tensor]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST_CAPABILITY = (8, 0)


def installed() -> bool:
    """Whether triton is there, with something to run on; it is not imported."""
    return find_spec("triton") is not None and (interpreted() or torch.cuda.is_available())


def interpreted() -> bool:
    """Whether Triton's interpreter was asked for, which runs kernels on the CPU to test them."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def supports(x: Tensor, weight: PackedWeight) -> bool:
    """Whether `matmul` takes this product: ternary weights, and integers of 8, 4 and 2 bits."""
    if not _reaches(x, weight.tensors["weight"]) or min(weight.shape) == 0:
        return False
    return all(tensor.is_contiguous() for tensor in weight.tensors.values()) and _kernel(weight) is not None


def matmul(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """x [..., in] -> [..., out] in the type of x; rounded to int8 per token where the spec asks for it."""
    return cast(_Matmul, _kernel(weight))(x, weight, None if bias is None else bias.contiguous())


def supports_experts(x: Tensor, packed: PackedExperts) -> bool:
    """Whether `experts` takes these: ternary, with one scale per tensor or channel."""
    if not _usable(x.device):
        return False
    spec = getattr(packed.format, "spec", None)
    whole = isinstance(spec, TernaryBits) and spec.granularity != "group"
    stored = (*packed.weights, *packed.scales, *packed.biases)
    return (
        whole
        and packed.activation in ACTIVATIONS
        and packed.inner > 0
        and all(tensor.is_contiguous() for tensor in stored)
        and all(_reaches(x, tensor) for tensor in stored)
    )


def experts(x: Tensor, chosen: Tensor, gates: Tensor, packed: PackedExperts) -> Tensor:
    """`sum_k gate_k * E_k(x)` for x [T, hidden], integers chosen [T, k] and gates [T, k]."""
    return cast(Tensor, _module("routed").experts(x, chosen, gates, packed))


def _reaches(x: Tensor, stored: Tensor) -> bool:
    return x.dtype in _DTYPES and x.numel() > 0 and stored.device == x.device and _usable(x.device)


@cache
def _usable(device: torch.device) -> bool:
    if find_spec("triton") is None:
        return False
    if device.type != "cuda":
        return interpreted() and device.type == "cpu"
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= _OLDEST_CAPABILITY


def _kernel(weight: PackedWeight) -> _Matmul | None:
    spec = getattr(weight.format, "spec", None)
    if isinstance(spec, TernaryBits) and spec.granularity != "group":
        return cast(_Matmul, _module("ternary").matmul)
    integer = _module("integer")
    takes = isinstance(spec, TernaryBits | IntegerBits) and integer.supports(weight)
    return cast(_Matmul, integer.matmul) if takes else None


def _module(name: str) -> Any:
    return import_module(f"{__name__}.{name}")
