"""The feed-forward blocks of a model, and whether they do what their structure says."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.conv import _ConvNd

from mote_quant.anatomy.block import FeedForward, pair, read_block, without_activation
from mote_quant.anatomy.numbers import mismatch
from mote_quant.anatomy.structure import decoder_layers, join, linear_shape
from mote_quant.anatomy.wiring import wired
from mote_quant.errors import AlreadyMoEError, UnsupportedModelError

__all__ = ["FeedForward", "expert_holders", "find_feedforwards", "gate_by_numbers", "scan", "verify"]

SUPPORTED = (
    "supported are blocks of two linear layers, h -> i (or gate and up in one, h -> 2i) and i -> h, or three (gate and "
    "up h -> i, down i -> h), Linear or Conv1D, with or without bias, in one module with one activation and nothing "
    "else that has weights, or in the decoder layer itself with one activation module beside them"
)


def find_feedforwards(model: nn.Module) -> list[FeedForward]:
    """The feed-forward block of every decoder layer that has one, in layer order; language part only.

    Each is as its forward has it, which is tried out without the weights: on a meta model too. Raises AlreadyMoEError,
    and UnsupportedModelError with the missing trait of every layer; whether all is as it seems is for `verify`.
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
    """Is a block what its structure says, and nothing more? Told by its forward, then by its weights on a few rows.

    Raises UnsupportedModelError otherwise, BadWeightsError for weights that are not finite. Of a meta model only the
    forward is looked at; a block without a module of its own (inline) passes.
    """
    if ff.inline:
        return
    module = model.get_submodule(ff.path)
    try:
        found = wired(module, ff)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{error}; {SUPPORTED}") from error
    problem = mismatch(module, ff)
    if found not in (None, ff):
        problem = problem or "its forward puts its parts together in another way"
    if problem:
        raise UnsupportedModelError(f"{ff.path} is not a plain feed-forward block: {problem}; {SUPPORTED}")


def gate_by_numbers(model: nn.Module, block: FeedForward) -> FeedForward:
    """The block as its forward has it (see `mote_quant.anatomy.wiring`); `scan` goes by names. No error, no weights."""
    if block.inline:
        return block
    try:
        return wired(model.get_submodule(block.path), block) or block
    except UnsupportedModelError:  # `verify` is the one to report it
        return block


def scan(model: nn.Module) -> list[FeedForward]:
    """`find_feedforwards` by structure and names: no errors about blocks, none for models with experts."""
    found = (_largest(index, path, layer) for index, (path, layer) in enumerate(decoder_layers(model)))
    return [block for block in found if block is not None]


def expert_holders(path: str, layer: nn.Module) -> Iterator[str]:
    """Paths of the modules in a decoder layer that hold experts: by declaration, as 3-D weights, or as a list."""
    widths = {size for module in layer.modules() for size in linear_shape(module) or ()}
    for name, module in layer.named_modules(prefix=path):
        declared = "routed" in getattr(module, "parameter_roles", {}).values()
        stacked = any(_stacks(p, widths) for p in module.parameters(recurse=False)) and not isinstance(module, _ConvNd)
        listed = isinstance(module, nn.ModuleList) and len(module) and all(pair(expert) for expert in module)
        if declared or stacked or listed:
            yield name


def _stacks(parameter: nn.Parameter, widths: set[int]) -> bool:
    """Whether these are linear layers [E, out, in] that read or write the layer's own width, not blocks of one gate."""
    return parameter.dim() == 3 and (not widths or not widths.isdisjoint(parameter.shape[1:]))


def _largest(index: int, path: str, layer: nn.Module) -> FeedForward | None:
    """The layer's biggest block: small side branches of the same shape (adapters, per-layer inputs) are not it."""
    blocks = [
        block
        for name, module in _searched(path, layer)
        if isinstance(block := _read(index, name, module, path), FeedForward)
    ]
    return max(blocks, key=lambda block: block.intermediate_size, default=None)


def _read(index: int, path: str, module: nn.Module, layer: str) -> FeedForward | str | None:
    """`read_block`; a block without an activation module is one if its forward has one of transformers' functions."""
    block = read_block(index, path, module, layer)
    if not isinstance(block, FeedForward) or block.activation is not None:
        return block
    try:
        return wired(module, block) or without_activation(path, module)
    except UnsupportedModelError:
        return without_activation(path, module)


def _searched(path: str, layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layer's modules, without what lies in a module that declares its own roles."""
    yield path, layer
    for name, child in layer.named_children():
        if not hasattr(child, "parameter_roles"):
            yield from _searched(join(path, name), child)


def _reasons(model: nn.Module, layers: list[tuple[str, nn.Module]]) -> str:
    """One line a reason, with the layers it holds for."""
    holders: dict[str, list[int]] = {}
    for index, (path, layer) in enumerate(layers):
        notes = [
            note for name, module in _searched(path, layer) if isinstance(note := _read(index, name, module, path), str)
        ]
        reason = (
            "; ".join(notes).replace(f"{path}.", "").replace(path, "the layer itself")
            or "no module with an h -> i and an i -> h linear pair"
        )
        holders.setdefault(reason, []).append(index)
    lines = [f"layer {', '.join(map(str, indices))}: {reason}" for reason, indices in holders.items()]
    title = f"no feed-forward block recognised in {type(model).__name__}"
    return "\n".join([title, *lines, SUPPORTED])
