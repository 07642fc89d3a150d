"""The codes of latent weights, looked at now and then: how many are zero, how many have changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mote_quant.parallel.sharding import whole
from mote_quant.qat.codes import find_codes, scale_of
from mote_quant.qat.linear import QatLinear
from mote_quant.ranks import gathered, ranks
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
    """The latent layers of a model, each in some `groups`; what is kept of them between two looks are their codes.

    Several processes share the looking: each has its own layers.
    """

    def __init__(self, model: nn.Module, groups: Mapping[str, Sequence[str]]) -> None:
        self._layers = {name: m for name, m in model.named_modules() if isinstance(m, QatLinear) and name in groups}
        self._groups = groups
        self._own = {*list(self._layers)[ranks().rank :: ranks().world]}
        with torch.no_grad():
            self._before = dict(self._look())

    @torch.no_grad()
    def take(self) -> dict[str, dict[str, float]]:
        """By group: the share of ternary weights that are `zeros`, and of all codes that changed (`flips`) since the
        last look. To be called by all processes; all of them know.
        """
        own: dict[str, _Count] = {}
        for name, now in self._look():
            own[name] = _compare(self._layers[name], now, self._before.get(name, now))
            self._before[name] = now
        found = {name: count for part in gathered(own) for name, count in part.items()}
        counts: dict[str, _Count] = {}
        for name in self._layers:
            for group in self._groups[name] if name in found else ():
                counts[group] = counts.get(group, _Count()) + found[name]
        return {group: _shares(count) for group, count in counts.items()}

    def _look(self) -> Iterator[tuple[str, Tensor]]:
        """The codes now of this process's layers, packed or int8; none of a weight that is elsewhere."""
        for name, layer in self._layers.items():
            # A sharded weight is gathered by all, whoever looks at it.
            weight, learned = whole(layer.weight), None if layer.weight_scale is None else whole(layer.weight_scale)
            if name in self._own and not weight.is_meta:
                yield name, _codes(layer, weight, learned)


def _codes(layer: QatLinear, weight: Tensor, learned: Tensor | None) -> Tensor:
    if isinstance(layer.spec, ScaledBits):
        return compact_codes(weight, scale_of(weight, layer.spec, learned), layer.spec)
    return find_codes(weight, layer.spec, learned).codes


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
