"""The `upcycle` step: install the planned mixtures, copy the dense weights into the experts, draw the routers."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from mote_quant.anatomy.feedforward import find_feedforwards, verify
from mote_quant.hf.attach import attach
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import MoteBlock, MoteLayout, install
from mote_quant.recipe.schema import Upcycle
from mote_quant.steps.base import Context
from mote_quant.steps.upcycle.initialize import initialize
from mote_quant.steps.upcycle.preservation import Receipt, probe

_log = logging.getLogger(__name__)


def run(model: nn.Module, config: Upcycle, context: Context) -> nn.Module:
    """Up-cycle `model` in place; `context.notes["preservation"]` says how far its outputs moved."""
    places = {layout.path for layout in context.layouts}
    for feedforward in find_feedforwards(model):
        if feedforward.place in places:
            verify(model, feedforward)
    before = probe(model)
    generator = torch.Generator().manual_seed(context.seed)
    context.progress.start("up-cycling", len(context.layouts))
    for done, layout in enumerate(context.layouts, start=1):
        upcycle_layer(model, layout, config, generator)
        context.progress.advance(done)
    attach(model)
    receipt = Receipt.between(before, probe(model))
    context.notes["preservation"] = receipt.to_dict()
    _log.info("up-cycled %d layers; outputs moved by %.3g (relative)", len(context.layouts), receipt.relative)
    return model


def upcycle_layer(
    model: nn.Module,
    layout: MoteLayout,
    config: Upcycle,
    generator: torch.Generator,
    made: Callable[[nn.Module], None] = lambda expert: None,
) -> None:
    """Put the mixture `layout` into `model`; `made` is called with each expert as soon as it has its weights."""
    parent = layout.path.rpartition(".")[0] if layout.inline else layout.path
    dense = model.get_submodule(parent)
    weights = {"up_proj": layout.up, "down_proj": layout.down} | ({"gate_proj": layout.gate} if layout.gate else {})
    sources = {ours: dense.get_submodule(theirs) for ours, theirs in weights.items()}
    block = install(model, layout)
    initialize(block, sources, config, generator, made)
    _freeze_like(block, sources["up_proj"])


def _freeze_like(block: MoteBlock, dense: nn.Module) -> None:
    # Packed weights cannot train, which says nothing about what starts from them.
    trains = isinstance(dense, PackedLinear) or cast(Tensor, dense.weight).requires_grad
    for parameter in [*block.experts.parameters(), *block.gate.parameters()]:
        parameter.requires_grad_(trains)
