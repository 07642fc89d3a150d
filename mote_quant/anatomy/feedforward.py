"""The feed-forward blocks of a model, and whether they do what their structure says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn
from torch.nn.modules.conv import _ConvNd

from mote_quant.anatomy.block import FeedForward, pair, read_block
from mote_quant.anatomy.numbers import fits_better_swapped, mismatch
from mote_quant.anatomy.structure import decoder_layers, join
from mote_quant.errors import AlreadyMoEError, UnsupportedModelError

__all__ = ["FeedForward", "expert_holders", "find_feedforwards", "scan", "verify"]

SUPPORTED = (
    "supported are blocks of two linear layers, h -> i and i -> h, or three (gate and up h -> i, down i -> h), as "
    "separate children (Linear or Conv1D, with or without bias) of one module or of the decoder layer itself, with "
    "one activation module beside them and nothing else that has weights"
)


def find_feedforwards(model: nn.Module) -> list[FeedForward]:
    """The feed-forward block of every decoder layer that has one, in layer order; language part only.

    Where weights are real, their numbers decide which of two like linear layers is the gate; on a meta model, names
    and order do. Raises AlreadyMoEError, and UnsupportedModelError with the missing trait of every layer.
    """
    layers = decoder_layers(model)
    if not layers:
        raise UnsupportedModelError(f"{type(model).__name__} has no list of decoder layers (no ModuleList of blocks)")
    for path, layer in layers:
        for holder in expert_holders(path, layer):
            raise AlreadyMoEError(f"{holder} already holds experts; only dense feed-forward blocks can be up-cycled")
    blocks = scan(model)
    if not blocks:
        raise UnsupportedModelError(_reasons(model, layers))
    return [gate_by_numbers(model, block) for block in blocks]


def verify(model: nn.Module, ff: FeedForward) -> None:
    """Run a block with real weights on a few random rows: is it what its structure says, and nothing more?

    Raises UnsupportedModelError otherwise, BadWeightsError for weights that are not finite. A meta model cannot be
    run, nor can a block without a module of its own (inline): both pass.
    """
    if ff.inline:
        return
    problem = mismatch(model.get_submodule(ff.path), ff)
    if problem:
        raise UnsupportedModelError(f"{ff.path} is not a plain feed-forward block: {problem}; {SUPPORTED}")


def scan(model: nn.Module) -> list[FeedForward]:
    """`find_feedforwards` by structure alone: no numbers, no errors about blocks, none for models with experts."""
    found = (_largest(index, path, layer) for index, (path, layer) in enumerate(decoder_layers(model)))
    return [block for block in found if block is not None]


def expert_holders(path: str, layer: nn.Module) -> Iterator[str]:
    """Paths of the modules in a decoder layer that hold experts: by declaration, as 3-D weights, or as a list."""
    for name, module in layer.named_modules(prefix=path):
        declared = "routed" in getattr(module, "parameter_roles", {}).values()
        stacked = any(p.dim() == 3 for p in module.parameters(recurse=False)) and not isinstance(module, _ConvNd)
        listed = isinstance(module, nn.ModuleList) and len(module) and all(pair(expert) for expert in module)
        if declared or stacked or listed:
            yield name


def _largest(index: int, path: str, layer: nn.Module) -> FeedForward | None:
    """The layer's biggest block: small side branches of the same shape (adapters, per-layer inputs) are not it."""
    blocks = [
        block
        for name, module in _searched(path, layer)
        if isinstance(block := read_block(index, name, module, path), FeedForward)
    ]
    return max(blocks, key=lambda block: block.intermediate_size, default=None)


def _searched(path: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layer's modules, without what lies in a module that declares its own roles."""
    yield path, layer
    for name, child in layer.named_children():
        if not hasattr(child, "parameter_roles"):
            yield from _searched(join(path, name), child)


def gate_by_numbers(model: nn.Module, block: FeedForward) -> FeedForward:
    if block.gate is None or block.inline or not fits_better_swapped(model.get_submodule(block.path), block):
        return block
    return replace(block, gate=block.up, up=block.gate)


def _reasons(model: nn.Module, layers: list[tuple[str, nn.Module]]) -> str:
    """One line a reason, with the layers it holds for."""
    holders: dict[str, list[int]] = {}
    for index, (path, layer) in enumerate(layers):
        notes = [
            note
            for name, module in _searched(path, layer)
            if isinstance(note := read_block(index, name, module, path), str)
        ]
        reason = (
            "; ".join(notes).replace(f"{path}.", "").replace(path, "the layer itself")
            or "no module with an h -> i and an i -> h linear pair"
        )
        holders.setdefault(reason, []).append(index)
    lines = [f"layer {', '.join(map(str, indices))}: {reason}" for reason, indices in holders.items()]
    title = f"no feed-forward block recognised in {type(model).__name__}"
    return "\n".join([title, *lines, SUPPORTED])
