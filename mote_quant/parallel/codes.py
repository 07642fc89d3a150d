"""Latent weights of which backward needs only the codes that forward found: they need not be gathered twice."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from mote_quant.moe import blocks
from mote_quant.moe.experts import Experts
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import Train


def codes_suffice(config: Train) -> bool:
    """Whether backward finds the codes of forward: not where that runs again, or latent weights are blended in."""
    again = config.gradient_checkpointing or config.compile
    return config.fake_quantize and not again and not config.ternary_ramp


def known_by_codes(module: nn.Module) -> Iterator[Experts]:
    """The experts of each mixture layer inside whose backward looks at no weight; a learned scale's gradient does."""
    for block in blocks(module).values():
        holders = [part for part in block.experts.modules() if next(part.parameters(recurse=False), None) is not None]
        if all(isinstance(part, QatLinear) and part.weight_scale is None for part in holders):
            yield block.experts
