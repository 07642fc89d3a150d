"""How far quantization moved a model: errors of single weights and layers, and of the logits, role by role."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mote_quant.hf.structure import replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.steps.quantize.walk import Batch

POSITIONS = 512
"""Held-out positions whose logits are compared; they are held as float32 [positions, vocabulary]."""


def weight_error(weight: Tensor, packed: PackedLinear) -> float:
    """|W - Q| / |W| (Frobenius) of a weight [out, in]."""
    return _relative(weight.float() - packed.dequantize().float(), weight.float())


def output_error(weight: Tensor, packed: PackedLinear, inputs: Tensor | None) -> float | None:
    """|W x - Q x| / |W x| over the inputs [rows, in]; None without inputs."""
    if inputs is None or not len(inputs):
        return None
    expected = F.linear(inputs, weight.float())
    return _relative(expected - F.linear(inputs, packed.dequantize().float()), expected)


def _relative(difference: Tensor, whole: Tensor) -> float:
    size = float(whole.norm())
    return float(difference.norm()) / size if size else 0.0


@dataclass(frozen=True)
class Distance:
    """`kl`: mean KL divergence from the model before, in nats; `agreement`: share of equal top tokens."""

    kl: float
    agreement: float


class Reference:
    """The log-probabilities of a model at evenly spread held-out positions, to compare what it becomes with."""

    def __init__(self, model: nn.Module, batches: Sequence[Batch]) -> None:
        self._batches = batches
        self._before = torch.cat(list(self._log_probabilities(model)))

    @property
    def positions(self) -> int:
        """How many positions are compared."""
        return len(self._before)

    def distance(self, model: nn.Module) -> Distance:
        """How far `model` is from what it was."""
        after = torch.cat(list(self._log_probabilities(model)))
        kl = F.kl_div(after, self._before, reduction="batchmean", log_target=True)
        same = after.argmax(-1) == self._before.argmax(-1)
        # Equal models differ by rounding alone, which may fall below zero.
        return Distance(max(float(kl), 0.0), float(same.float().mean()))

    @torch.no_grad()
    def _log_probabilities(self, model: nn.Module) -> Iterator[Tensor]:
        for batch in self._batches:
            logits = model(**batch, use_cache=False).logits
            mask = batch.get("attention_mask")
            rows = logits.flatten(0, 1) if mask is None else logits[mask.bool()]
            count = min(len(rows), max(POSITIONS // len(self._batches), 1))
            chosen = rows[torch.arange(count, device=rows.device) * len(rows) // count]
            yield chosen.float().log_softmax(-1)


def moved(
    model: nn.Module, reference: Reference, dense: Mapping[str, nn.Module], role_of: Mapping[str, str]
) -> dict[str, Any]:
    """How far quantizing moved the logits, in all and (where `dense` has the modules as they were) role by role."""
    rows = measure_roles(model, dense, role_of, reference) if dense else []
    distance = reference.distance(model)
    return {"positions": reference.positions, "roles": rows, "kl": distance.kl, "agreement": distance.agreement}


def measure_roles(
    model: nn.Module, dense: Mapping[str, nn.Module], role_of: Mapping[str, str], reference: Reference
) -> list[dict[str, Any]]:
    """One row a role: the distance before and after its modules are quantized, one role after the other.

    `dense` holds the modules as they were. The model is as quantized after as before the call.
    """
    packed = {name: model.get_submodule(name) for name in dense}
    for name, module in dense.items():
        replace_module(model, name, module)
    before, rows = reference.distance(model), []
    for role in dict.fromkeys(role_of[name] for name in dense):
        for name, module in packed.items():
            if role_of[name] == role:
                replace_module(model, name, module)
        after = reference.distance(model)
        rows.append({"role": role} | _row(before, after))
        before = after
    return rows


def _row(before: Distance, after: Distance) -> dict[str, float]:
    return {
        "kl_before": before.kl,
        "kl_after": after.kl,
        "agreement_before": before.agreement,
        "agreement_after": after.agreement,
    }
