"""(b) One MoTE layer beside full-precision ones, and its routed experts beside a loop over experts in bfloat16."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from eval.benchmarks.models import KINDS, build
from eval.benchmarks.rows import Row, compared
from eval.benchmarks.scale import Scale
from eval.benchmarks.targets import LAYER, ROUTED
from eval.benchmarks.timing import Call, race
from mote_quant.moe import MoteBlock
from mote_quant.moe.experts import Expert, route
from mote_quant.moe.packed import activation_name, packed_route
from mote_quant.moe.router import Choice

MOE, SAME, LOOP = "bf16 MoE layer, top-2 of 4", "the same layer in bf16", "torch bf16 expert loop"
ID = "layer-vs-fp-moe"
_INPUTS = 8


@torch.no_grad()
def rows(scale: Scale) -> list[Row]:
    """The layer at 1 token, the routed experts at 1, 32 and 512."""
    torch.set_num_threads(1)
    blocks = {LAYER: _block("MoTE+int4", scale), MOE: _block("bf16 MoE", scale), SAME: _block("MoTE in bf16", scale)}
    shape = (blocks[LAYER].layout.intermediate_size, blocks[LAYER].layout.hidden_size)
    inputs = _inputs(1, shape[1])
    times = race(
        {name: [partial(made, x) for made in _copies(block, scale) for x in inputs] for name, block in blocks.items()},
        scale.cell_seconds, rounds=scale.rounds,
    )  # fmt: skip
    made = [
        compared(ID, LAYER, MOE, times, shape=shape, tokens=1, read_bytes=_read_bytes(blocks[LAYER], 1)),
        compared("layer-vs-same-in-bf16", LAYER, SAME, times, shape=shape, tokens=1),
    ]
    return made + [_routed(blocks, tokens, shape, scale) for tokens in (1, 32, 512)]


def expert_loop(x: Tensor, experts: nn.ModuleList, choice: Choice, activation: nn.Module) -> Tensor:
    """What one writes by hand: every expert that was chosen, on the tokens that chose it."""
    out = torch.zeros_like(x)
    for index in sorted(set(choice.experts.flatten().tolist())):
        token, slot = (choice.experts == index).nonzero(as_tuple=True)
        expert = cast(Any, experts[index])
        seen = x[token]
        y = expert.down_proj(activation(expert.gate_proj(seen)) * expert.up_proj(seen))
        out.index_add_(0, token, y * choice.gates[token, slot, None].to(y.dtype))
    return out


def routed(x: Tensor, experts: nn.ModuleList, choice: Choice, activation: nn.Module, *, name: str | None) -> Tensor:
    """What a MoteBlock does with a choice of its router; it has found the activation's `name` when it was made."""
    found = packed_route(x, cast("Sequence[Expert]", experts), choice, name)
    return route(x, experts, choice, activation) if found is None else found


def _block(kind: str, scale: Scale) -> MoteBlock:
    model = cast(Any, build(KINDS[kind], scale.model | {"num_hidden_layers": 1}))
    return cast(MoteBlock, model.model.layers[0].mlp)


def _inputs(tokens: int, hidden: int) -> list[Tensor]:
    """Several, for they ask for different experts."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(tokens, hidden, generator=generator).bfloat16() for _ in range(_INPUTS)]


def _nbytes(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in module.state_dict().values())


def _read_bytes(block: MoteBlock, asked: int) -> int:
    """What of a layer is read when so many experts are asked."""
    return _nbytes(block) - (len(block.experts) - asked) * _nbytes(block.experts[0])


def _copies(block: nn.Module, scale: Scale) -> list[nn.Module]:
    held = _nbytes(block)
    return [block, *(copy.deepcopy(block) for _ in range(math.ceil(scale.copies_bytes / held) - 1))]


def _routed(blocks: Mapping[str, MoteBlock], tokens: int, shape: tuple[int, int], scale: Scale) -> Row:
    inputs = [(x, blocks[LAYER].gate(x)) for x in _inputs(tokens, shape[1])]

    def calls(function: Any, block: MoteBlock) -> list[Call]:
        copies = _copies(block.experts, scale)
        return [partial(function, x, part, choice, block.activation) for part in copies for x, choice in inputs]

    ours = partial(routed, name=activation_name(blocks[LAYER].activation))
    contenders = {ROUTED: calls(ours, blocks[LAYER]), LOOP: calls(expert_loop, blocks[SAME])}
    times = race(contenders, scale.cell_seconds, rounds=scale.rounds)
    asked = round(statistics.fmean(len(choice.experts.unique()) for _, choice in inputs))
    work = {"read_bytes": asked * _nbytes(blocks[LAYER].experts[0]), "operations": 6 * math.prod(shape) * tokens}
    return compared(ID, ROUTED, LOOP, times, shape=shape, tokens=tokens, **work)
