"""From an `upcycle` step and a dense model to the mixture layers it will get."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from mote_quant.anatomy.feedforward import FeedForward, find_feedforwards
from mote_quant.errors import RequestError
from mote_quant.moe import MoteLayout
from mote_quant.moe.layout import Projection
from mote_quant.recipe.schema import QatBits, Upcycle

_PLACEMENTS: dict[str, Callable[[int, int], bool]] = {
    "all": lambda index, count: True,
    "every_other": lambda index, count: index % 2 == 0,
    "first_half": lambda index, count: index < (count + 1) // 2,
    "second_half": lambda index, count: index >= count // 2,
}


def plan_layouts(
    model: nn.Module, config: Upcycle, qat: Mapping[Projection, QatBits] | None = None
) -> tuple[MoteLayout, ...]:
    """The mixture layers `config` asks for, in layer order; `qat`: what projections train for. Works on meta models."""
    return tuple(_layout(block, config, qat or {}) for block in _chosen(find_feedforwards(model), config))


def _chosen(found: list[FeedForward], config: Upcycle) -> list[FeedForward]:
    if isinstance(config.layers, str):
        keep = _PLACEMENTS[config.layers]
        return [block for index, block in enumerate(found) if keep(index, len(found))]
    known = {block.layer: block for block in found}
    missing = [layer for layer in config.layers if layer not in known]
    if missing:
        raise RequestError(
            f"upcycle.layers: {missing} have no feed-forward block; this model has them in layers {sorted(known)}"
        )
    return [known[layer] for layer in sorted(set(config.layers))]


def _layout(block: FeedForward, config: Upcycle, qat: Mapping[Projection, QatBits]) -> MoteLayout:
    normalize = config.normalize_gates
    if normalize is None:
        # As DeepSpeed does for the top-2 baseline; a raw top-1 gate keeps its gradient, a convex mix needs weight 1.
        normalize = config.combine == "convex" or (config.shared == "none" and config.top_k > 1)
    if block.intermediate_size % config.split:
        raise RequestError(
            f"upcycle.split: {config.split} does not divide the width {block.intermediate_size} of {block.path} "
            "(its hidden units); take one that does"
        )
    return MoteLayout(
        path=f"{block.path}.{block.up}" if block.inline else block.path,
        kind=block.kind,
        up=block.up,
        down=block.down,
        gate=block.gate,
        activation=block.activation,
        inline=block.inline,
        hidden_size=block.hidden_size,
        intermediate_size=block.intermediate_size,
        bias=block.bias,
        experts=config.experts,
        top_k=config.top_k,
        shared=config.shared == "keep",
        combine=config.combine,
        mix=config.mix,
        normalize_gates=normalize,
        qat={projection: spec for projection, spec in qat.items() if projection != "gate_proj" or block.gate},
        split=config.split,
        lora_rank=config.lora_rank,
    )
