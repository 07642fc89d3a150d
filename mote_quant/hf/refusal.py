"""What makes other readers refuse a file: latent experts of a model's own look to them like the experts they were."""

from __future__ import annotations

import re
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.moe.native import NativeExperts
from mote_quant.qat.linear import QatLinear


def surplus(model: nn.Module) -> dict[str, Tensor]:
    """For each layer of latent experts that transformers would stack, one expert too many, of no bytes: by file name.

    Stacked with it they fail. Where transformers does not stack, the layer has a guard of its own.
    """
    return {f"{path}.{experts.num_experts}.up_proj.weight": torch.empty(0) for path, experts in _latent(model).items()}


def expect_surplus(model: nn.Module) -> None:
    """Have transformers keep quiet about what `surplus` adds when `model` is loaded."""
    ours = cast(Any, model)
    expected = {f"^{re.escape(name)}$" for name in surplus(model)}
    ours._keys_to_ignore_on_load_unexpected = set(ours._keys_to_ignore_on_load_unexpected or ()) | expected


def _latent(model: nn.Module) -> dict[str, NativeExperts]:
    found = {path: module for path, module in model.named_modules() if isinstance(module, NativeExperts)}
    return {
        path: experts
        for path, experts in found.items()
        if not experts._parameters and any(isinstance(part, QatLinear) for part in experts.modules())
    }
