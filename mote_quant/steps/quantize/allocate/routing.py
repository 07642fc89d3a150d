"""How often calibration tokens are sent to each routed expert, and with what weight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mote_quant.anatomy.structure import under
from mote_quant.moe.block import MoteBlock
from mote_quant.moe.native import NativeExperts
from mote_quant.moe.router import Choice


@dataclass
class Traffic:
    """`offered`: tokens of the layer; `tokens`: those the expert got, with `gates` their summed weights.

    `running` are the weights of the tokens of the batch that runs [rows], 0 for padding, in the order the expert gets
    them.
    """

    offered: int = 0
    tokens: int = 0
    gates: float = 0.0
    running: Tensor | None = None

    @property
    def frequency(self) -> float:
        """The share of the layer's tokens that the expert got."""
        return self.tokens / self.offered if self.offered else 0.0

    @property
    def gate(self) -> float:
        """The mean weight of the tokens the expert got."""
        return self.gates / self.tokens if self.tokens else 0.0


class Routing:
    """Watches the routers of mixtures and of native experts taken apart; `experts` is by the path of the expert."""

    def __init__(self, model: nn.Module, masks: Sequence[Tensor | None]) -> None:
        self._mixtures = {
            path: module for path, module in model.named_modules() if isinstance(module, MoteBlock | NativeExperts)
        }
        self._masks = masks
        self._batch = 0
        self.experts: dict[str, Traffic] = {}

    def begin(self, batch: int) -> None:
        """Batch number `batch` runs from now on."""
        self._batch = batch

    @contextmanager
    def watching(self, names: Sequence[str], count: bool) -> Iterator[None]:
        """While open, the weights of tokens that run through the named modules are known, and counted with `count`."""
        handles = []
        for path, module in self._mixtures.items():
            if not any(under(name, path) for name in names):
                continue
            if isinstance(module, MoteBlock):
                handles.append(module.gate.register_forward_hook(self._of_router(f"{path}.experts", module, count)))
            else:
                hook = self._of_experts(path, module, count)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _of_router(self, path: str, block: MoteBlock, count: bool) -> Any:
        def hook(module: nn.Module, args: Any, choice: Choice) -> None:
            self._take(path, block.layout.experts, choice.experts, choice.gates, count)

        return hook

    def _of_experts(self, path: str, experts: NativeExperts, count: bool) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            chosen, gates = experts.choice(*args, **kwargs)
            self._take(path, experts.num_experts, chosen, gates, count)

        return hook

    def _take(self, path: str, experts: int, chosen: Tensor, gates: Tensor, count: bool) -> None:
        real = torch.ones_like(chosen, dtype=torch.bool)
        mask = self._masks[self._batch]
        if mask is not None and mask.numel() == len(chosen):
            real &= mask.to(chosen.device).reshape(-1, 1)
        gates = gates.float() * real
        offered = int(real[:, 0].sum()) if count else 0
        for index in range(experts):
            traffic = self.experts.setdefault(f"{path}.{index}", Traffic())
            picked = chosen == index
            traffic.running = gates[picked]
            if count:
                traffic.offered += offered
                traffic.tokens += int(real[picked].sum())
                traffic.gates += float(traffic.running.sum())
