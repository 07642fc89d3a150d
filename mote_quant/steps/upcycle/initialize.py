"""What the routed experts and the router of a new mixture start from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from mote_quant.hf.structure import is_transposed
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import MoteBlock, MoteLayout
from mote_quant.moe.lora import LowRank
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import Upcycle

DOWN = "down_proj"


@torch.no_grad()
def initialize(
    block: MoteBlock,
    dense: Mapping[str, nn.Module],
    config: Upcycle,
    generator: torch.Generator,
    made: Callable[[nn.Module], None] = lambda expert: None,
) -> None:
    """Fill the experts of `block` from the dense layers (named as an expert names its own) and draw its router.

    `made` is called with each expert as soon as it has its weights.
    """
    for number, expert in enumerate(block.experts):
        for name, source in dense.items():
            target = expert.get_submodule(name)
            if isinstance(target, LowRank):
                _start_at_nothing(target, generator)
            else:
                _fill(cast(nn.Linear, target), *_piece(source, name, number, block.layout), config, generator)
        made(expert)
    _draw(block.gate.weight, config.router_std, generator)


def _fill(target: nn.Linear, weight: Tensor, bias: Tensor | None, config: Upcycle, generator: torch.Generator) -> None:
    spread = float(weight.float().std())
    if config.init == "random":
        _draw(target.weight, spread, generator)
    else:
        target.weight.copy_(weight)
        if config.noise:
            target.weight.add_(_normal(target.weight, config.noise * spread, generator))
    if bias is not None:
        target.bias.copy_(bias)
    if isinstance(target, QatLinear):
        target.fit_scale()


def _piece(source: nn.Module, name: str, number: int, layout: MoteLayout) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias of what expert `number` has of a dense layer.

    `layout.split` consecutive experts hold one copy between them: the sum of their outputs is that of the dense block
    (DeepSeekMoE, arXiv 2401.06066, section 3.1).
    """
    weight, bias = _projection(source, name, layout)
    start = number % layout.split * layout.expert_size
    units = slice(start, start + layout.expert_size)
    if name == DOWN:
        return weight[:, units], None if bias is None else bias / layout.split
    return weight[units], None if bias is None else bias[units]


def _projection(source: nn.Module, name: str, layout: MoteLayout) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias of one projection: its half of a fused layer, with what the block multiplies it by."""
    weight, bias = _dense_weight(source), cast("Tensor | None", source.bias)
    rows, factor = _rows(name, layout), _factor(name, layout)
    scaled = weight[rows] if factor == 1.0 else weight[rows] * factor
    return scaled, None if bias is None else bias[rows] if factor == 1.0 else bias[rows] * factor


def _rows(name: str, layout: MoteLayout) -> slice:
    """Where a projection lies in the dense layer it is part of."""
    if layout.fused is None or name == DOWN:
        return slice(None)
    first = name == ("gate_proj" if layout.fused == "gate_first" else "up_proj")
    return slice(layout.intermediate_size) if first else slice(layout.intermediate_size, None)


def _factor(name: str, layout: MoteLayout) -> float:
    """What enters the activation has the gate's factor, what leaves the block that of the output; others have none."""
    activated = "up_proj" if layout.gate is None else "gate_proj"
    return {activated: layout.gate_scale, DOWN: layout.output_scale}.get(name, 1.0)


def _start_at_nothing(change: LowRank, generator: torch.Generator) -> None:
    """`lora_B` 0, so that nothing is changed yet; `lora_A` keeps the size of its input, so that `lora_B` learns."""
    _draw(change.lora_A.weight, change.lora_A.in_features**-0.5, generator)
    change.lora_B.weight.zero_()


def _dense_weight(source: nn.Module) -> Tensor:
    """[out, in], of a layer of any make."""
    if isinstance(source, PackedLinear):
        return source.dequantize()
    weight = cast(Tensor, source.weight)
    return weight.t() if is_transposed(source) else weight


def _draw(target: Tensor, std: float, generator: torch.Generator) -> None:
    target.copy_(_normal(target, std, generator))


def _normal(like: Tensor, std: float, generator: torch.Generator) -> Tensor:
    # Drawn on the CPU in float32, so that a seed means the same on every device and in every type.
    return (torch.randn(like.shape, generator=generator) * std).to(like)
