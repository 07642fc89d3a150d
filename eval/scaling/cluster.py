"""A cluster in a few numbers: what its vendor promises and what is assumed of it. Nothing here was measured."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Cluster:
    """`gpus` in nodes of `per_node`. Rates are bytes or operations a second, of one GPU and one direction.

    `utilisation`: the part of `peak` that products reach; `reached`: that of the bandwidths.
    """

    gpus: int
    per_node: int = 8
    memory: float = 80e9
    peak: float = 989e12
    utilisation: float = 0.4
    hbm: float = 3.35e12
    nvlink: float = 450e9
    network: float = 50e9
    adapters: int = 8
    reached: float = 0.8

    @property
    def speed(self) -> float:
        """Operations a second."""
        return self.peak * self.utilisation

    @property
    def bandwidth(self) -> float:
        """Bytes a second at which a ring passes through a GPU: between nodes all adapters of a node share the rings."""
        within = self.nvlink * self.reached
        between = self.network * self.adapters * self.reached
        return within if self.gpus <= self.per_node else min(within, between)

    def with_adapters(self, count: int) -> Cluster:
        """The same with another number of network adapters in a node."""
        return replace(self, adapters=count)


ONE_NODE, EIGHT_NODES = Cluster(8), Cluster(64)
"""H100 SXM: 80 GB, 989 TFLOP/s in bfloat16 (dense), 3.35 TB/s, NVLink 900 GB/s for both directions together; a node has
8 of them and a 400 Gbit/s adapter for each (data sheets of the H100 and of the DGX H100 by NVIDIA)."""
