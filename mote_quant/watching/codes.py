"""The codes of latent weights, looked at now and then: how many are zero, how many have changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mote_quant.qat.codes import find_codes, scale_of
from mote_quant.qat.linear import QatLinear
from mote_quant.ranks import ranks
from mote_quant.recipe.schema import ScaledBits, TernaryBits
from mote_quant.ternary.quantize import compact_codes

_LOW = 0b01010101
"""The lower bit of each of the four codes of a byte; also the byte of four zeros, for a code is stored plus one."""


@dataclass
class _Count:
    """Of some weights: how many there are, how many could be zero and are, how many changed."""

    weights: int = 0
    could: int = 0
    zeros: int = 0
    flips: int = 0

    def __add__(self, other: _Count) -> _Count:
        return _Count(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


class CodeMeter:
    """The latent layers of a model, each in some `groups`; what is kept of them between two looks are their codes."""

    def __init__(self, model: nn.Module, groups: Mapping[str, Sequence[str]]) -> None:
        self._layers = {name: m for name, m in model.named_modules() if isinstance(m, QatLinear) and name in groups}
        self._groups = groups
        with torch.no_grad():
            found = {name: _codes(layer) for name, layer in self._layers.items()}
        self._before = {name: codes for name, codes in found.items() if codes is not None}

    @torch.no_grad()
    def take(self) -> dict[str, dict[str, float]]:
        """By group: the share of ternary weights that are `zeros`, and of all codes that changed (`flips`) since the
        last look. To be called by all processes; the first one knows.
        """
        counts: dict[str, _Count] = {}
        for name, layer in self._layers.items():
            now = _codes(layer)
            if now is not None:
                found = _compare(layer, now, self._before.get(name, now))
                for group in self._groups[name]:
                    counts[group] = counts.get(group, _Count()) + found
                self._before[name] = now
        return {group: _shares(count) for group, count in counts.items()}


def _codes(layer: QatLinear) -> Tensor | None:
    """The codes now, packed or int8; None where another process looks, or the weight is elsewhere."""
    weight, learned = _whole(layer.weight), None if layer.weight_scale is None else _whole(layer.weight_scale)
    if weight.is_meta or not ranks().main:
        return None
    if isinstance(layer.spec, ScaledBits):
        return compact_codes(weight, scale_of(weight, layer.spec, learned), layer.spec)
    return find_codes(weight, layer.spec, learned).codes


def _whole(tensor: Tensor) -> Tensor:
    """Gathered, where every process has a part of it."""
    gathered: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return gathered.detach()


def _compare(layer: QatLinear, now: Tensor, before: Tensor) -> _Count:
    weights, ternary = layer.weight.numel(), isinstance(layer.spec, TernaryBits)
    packed = isinstance(layer.spec, ScaledBits) and now.dtype == torch.uint8
    flips = _digits(now ^ before) if packed else int((now != before).sum())
    if not ternary:
        return _Count(weights, flips=flips)
    # What fills up a row's last byte is no weight, and never anything but zero.
    others = _digits(now ^ _LOW) if packed else int((now != 0).sum())
    return _Count(weights, weights, weights - others, flips)


def _digits(packed: Tensor) -> int:
    """How many of the 2-bit digits in a uint8 tensor are not 0."""
    marks = (packed | (packed >> 1)) & _LOW
    pairs = (marks & 0b00110011) + ((marks >> 2) & 0b00110011)
    return int(((pairs & 0b1111) + (pairs >> 4)).sum())


def _shares(count: _Count) -> dict[str, float]:
    zeros = {"zeros": round(count.zeros / count.could, 6)} if count.could else {}
    return zeros | {"flips": round(count.flips / max(count.weights, 1), 8)}
