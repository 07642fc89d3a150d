"""The mixture layer: block, router, experts, losses, and how to put it into a model."""

from mote_quant.moe.block import MoteBlock, Routing
from mote_quant.moe.build import install
from mote_quant.moe.layout import MoteLayout

__all__ = ["MoteBlock", "MoteLayout", "Routing", "blocks", "install"]


def blocks(model: object) -> dict[str, MoteBlock]:
    """Every mixture layer of `model` (an `nn.Module`) by its path, in order."""
    named = model.named_modules()  # type: ignore[attr-defined]
    return {name: module for name, module in named if isinstance(module, MoteBlock)}
