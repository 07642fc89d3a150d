"""Where the parts of a transformers model lie, told from its structure and its own accessors, never from its name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from mote_quant.recipe.schema import Role


def join(path: str, name: str) -> str:
    """A dotted path; either part may be empty."""
    return f"{path}.{name}" if path and name else path or name


def under(path: str, root: str) -> bool:
    """Whether `path` is `root` or lies below it."""
    return not root or path == root or path.startswith(f"{root}.")


def path_of(model: nn.Module, part: nn.Module | None) -> str | None:
    """The dotted path of `part` in `model`; None when it is not in there."""
    return next((path for path, module in model.named_modules() if module is part), None)


def ask(model: nn.Module, accessor: str) -> Any:
    """What the accessor of a transformers model returns; None where the model has none or does not support it."""
    try:
        return getattr(model, accessor)()
    except (AttributeError, NotImplementedError, TypeError):
        return None


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """(in_features, out_features) of a linear layer of any make (Linear, packed, Conv1D with its weight [in, out])."""
    if getattr(module, "weight", None) is None:
        return None
    shape = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if shape == (None, None):
        shape = getattr(module, "nx", None), getattr(module, "nf", None)
    columns, rows = shape
    return (columns, rows) if isinstance(columns, int) and isinstance(rows, int) else None


def linears(module: nn.Module) -> dict[str, tuple[int, int]]:
    """The linear layers directly below `module`, in order: child name -> (in_features, out_features)."""
    shapes = {name: linear_shape(child) for name, child in module.named_children()}
    return {name: shape for name, shape in shapes.items() if shape is not None}


def language_path(model: nn.Module) -> str:
    """The path of the language model's decoder: the whole model where it has no other part."""
    return path_of(model, ask(model, "get_decoder")) or ""


def towers(model: nn.Module) -> dict[str, Role]:
    """Parts with a configuration of their own beside the language model: path -> `vision`, or `other` (audio, ...)."""
    config = getattr(model, "config", None)
    names = getattr(config, "sub_configs", {})
    text = config.get_text_config() if config is not None and names else None
    parts = {name: getattr(config, name, None) for name in names}
    kinds: dict[type, Role] = {
        type(part): "vision" if name.startswith("vision") else "other"
        for name, part in parts.items()
        if part is not None and not isinstance(part, type(text))
    }
    found: dict[str, Role] = {}
    for path, module in model.named_modules():
        kind = kinds.get(type(getattr(module, "config", None)))
        if kind is not None and not any(under(path, known) for known in found):
            found[path] = kind
    return found


def decoder_layers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The decoder layers with their paths: the longest list of like blocks in the language part; empty without one."""
    root = language_path(model)
    beside = towers(model)
    stacks = [
        stack
        for stack in _outer_lists(root, model.get_submodule(root))
        if not any(under(stack[0], tower) for tower in beside)
    ]
    if not stacks:
        return []
    alike = [stack for stack in stacks if len({type(layer) for layer in stack[1]}) == 1]
    path, layers = max(alike or stacks, key=lambda stack: len(stack[1]))
    return [(f"{path}.{index}", layer) for index, layer in enumerate(layers)]


def _outer_lists(path: str, module: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """Every non-empty ModuleList that lies in no other one: a list of experts in a layer is not a list of layers."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList) and len(child):
            yield join(path, name), child
        else:
            yield from _outer_lists(join(path, name), child)
