"""A cluster in a few numbers: what its vendor promises and what is assumed of it. Nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

_PER_NODE = 8
_PEAK, _NVLINK, _NETWORK = 989e12, 450e9, 50e9
"""Operations, and bytes in one direction, a second: of a GPU, between those of a node, of a network adapter."""
_UTILISED, _REACHED = 0.4, 0.8
"""The part of the peak that products reach, and that of the bandwidths."""


@dataclass(frozen=True)
class Cluster:
    """`gpus` of one kind in nodes of 8, each with so many network `adapters`.

    A GPU has `memory` (bytes), and reads or writes it at `hbm` (bytes a second).
    """

    memory: ClassVar[float] = 80e9
    hbm: ClassVar[float] = 3.35e12
    gpus: int
    adapters: int = _PER_NODE

    @property
    def speed(self) -> float:
        """Operations a second."""
        return _PEAK * _UTILISED

    @property
    def bandwidth(self) -> float:
        """Bytes a second at which a ring passes through a GPU: between nodes all adapters of a node share the rings."""
        within, between = _NVLINK * _REACHED, _NETWORK * self.adapters * _REACHED
        return within if self.gpus <= _PER_NODE else min(within, between)

    def with_adapters(self, count: int) -> Cluster:
        """The same with another number of network adapters in a node."""
        return replace(self, adapters=count)


ONE_NODE, EIGHT_NODES = Cluster(8), Cluster(64)
"""H100 SXM: 80 GB, 989 TFLOP/s in bfloat16 (dense), 3.35 TB/s, NVLink 900 GB/s for both directions together; a node has
8 of them and a 400 Gbit/s adapter for each (data sheets of the H100 and of the DGX H100 by NVIDIA)."""
