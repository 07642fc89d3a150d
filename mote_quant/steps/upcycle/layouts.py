"""From an `upcycle` step and a dense model to the mixture layers it will get."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from mote_quant.anatomy.feedforward import FeedForward, find_feedforwards, verify
from mote_quant.errors import RequestError, UnsupportedModelError
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
    chosen = _chosen(find_feedforwards(model), config)
    _verify(model, chosen)
    return tuple(_layout(block, config, qat or {}) for block in chosen)


def _verify(model: nn.Module, blocks: list[FeedForward]) -> None:
    """`verify` each; the error names the layers without one, so that they can be asked for alone."""
    refused: dict[int, UnsupportedModelError] = {}
    for block in blocks:
        try:
            verify(model, block)
        except UnsupportedModelError as error:
            refused[block.layer] = error
    if not refused:
        return
    first, able = next(iter(refused.values())), [block.layer for block in blocks if block.layer not in refused]
    advice = f"; layers {able} can be up-cycled: name them in upcycle.layers" if able else ""
    raise UnsupportedModelError(f"{first}{advice}") from first


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
    if block.norm is not None and config.split > 1:
        raise RequestError(
            f"upcycle.split: {block.path} norms its hidden units together ({block.norm}), which no part of them can; "
            "leave split out"
        )
    return MoteLayout(
        path=block.place,
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
        fused=block.fused,
        function=block.function,
        gate_scale=block.gate_scale,
        output_scale=block.output_scale,
        residual=block.residual,
        norm=block.norm,
    )
