"""Experts that are low-rank changes of the shared expert (LLaVA-MoLE, arXiv 2401.16160; MixLoRA, arXiv 2404.15159).

Expert e is the dense block with `W + B_e A_e` in the place of each weight W, and a token gets from it what it differs
by: `FFN(x) + sum_k gate_k (FFN_e(x) - FFN(x))`. W is passed once for all of them: up and gate are computed and then
changed expert by expert, and as down is linear, the changes of its input are summed before it.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from mote_quant.moe.experts import Expert, route
from mote_quant.moe.joining import merge
from mote_quant.moe.layout import MoteLayout
from mote_quant.moe.router import Choice


class LowRank(nn.Module):
    """`x -> B A x`, the change of one projection: `lora_A` is [rank, in], `lora_B` [out, rank]."""

    def __init__(self, lora_a: nn.Linear, lora_b: nn.Linear) -> None:
        super().__init__()
        self.lora_A = lora_a
        self.lora_B = lora_b

    def forward(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        return cast(Tensor, self.lora_B(self.lora_A(x)))


class LoraExpert(Expert):
    """The changes of a dense block's projections, for tokens that have been through the dense ones (`pass_up`)."""

    def forward(self, x: Tensor, activation: nn.Module) -> Tensor:
        """[n, up (+ gate) + hidden] -> [n, up + hidden]: the changes of what enters down and of what leaves it."""
        gated = getattr(self, "gate_proj", None)
        up, gate, token = _parts(x, cast(LowRank, self.down_proj).lora_B.out_features, gated is not None)
        changed = None if gated is None or gate is None else gate + gated(token)
        entering = merge(up + self.up_proj(token), changed, activation)
        return torch.cat([entering - merge(up, gate, activation), self.down_proj(entering)], dim=-1)


class Dense(NamedTuple):
    """A dense block: its projections, full precision or packed, and how its layout puts them together."""

    block: nn.Module
    layout: MoteLayout

    @property
    def gated(self) -> bool:
        """Whether there is a gate beside up."""
        return self.layout.gate is not None

    def up(self, x: Tensor) -> list[Tensor]:
        """Tokens [T, hidden] -> what up makes of them [T, inner], and the gate if there is one."""
        layout, up = self.layout, self.block.get_submodule(self.layout.up)(x)
        if layout.gate is None:
            return [_times(up, layout.gate_scale)]
        if layout.fused:
            gate, up = up.chunk(2, dim=-1)[:: 1 if layout.fused == "gate_first" else -1]
        else:
            gate = self.block.get_submodule(layout.gate)(x)
        return [up, _times(gate, layout.gate_scale)]

    def down(self, entering: Tensor) -> Tensor:
        """[T, inner] -> [T, hidden]."""
        return _times(self.block.get_submodule(self.layout.down)(entering), self.layout.output_scale)


def _times(x: Tensor, factor: float) -> Tensor:
    return x if factor == 1.0 else x * factor


def pass_up(x: Tensor, dense: Dense) -> Tensor:
    """Tokens [T, hidden] behind what up (and gate) make of them: [T, up (+ gate) + hidden]."""
    return torch.cat([*dense.up(x), x], dim=-1)


def _parts(passed: Tensor, hidden: int, gated: bool) -> tuple[Tensor, Tensor | None, Tensor]:
    """What `pass_up` joined: up, gate and the tokens."""
    *dense, token = passed.tensor_split(
        [(passed.shape[-1] - hidden) // 2] * gated + [passed.shape[-1] - hidden], dim=-1
    )
    return dense[0], dense[1] if gated else None, token


def mixture(x: Tensor, dense: Dense, experts: nn.ModuleList, choice: Choice, activation: nn.Module) -> Tensor:
    """`FFN(x) + sum_k gate_k (FFN_k(x) - FFN(x))` for tokens `x` [T, hidden]."""
    passed = pass_up(x, dense)
    up, gate, _ = _parts(passed, x.shape[-1], dense.gated)
    entering = merge(up, gate, activation)
    if not len(x) or (choice.kept is not None and not choice.kept.any()):
        return dense.down(entering)
    change, added = route(passed, experts, choice, activation).tensor_split([up.shape[-1]], dim=-1)
    output = dense.down(entering + change)
    return output + added.to(output.dtype)
