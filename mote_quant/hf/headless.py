"""A saved structure in the names of another part of the model: loaded without its head, or with another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, TypeVar, cast

from torch import nn

from mote_quant.hf.structure import Structure

Value = TypeVar("Value")


def fitted(structure: Structure, model: nn.Module) -> Structure:
    """`structure`, as the config of `model` has it, in the names of `model`; what `model` lacks is left out.

    Left as it is for the class of model that was saved: there a name that leads nowhere is damage.
    """
    saved = getattr(cast(Any, model).config, "architectures", None) or []
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not saved or type(model).__name__ in saved:
        return structure
    own = {name for name, _ in model.named_children()}
    inner = {name for name, _ in getattr(model, prefix).named_children()} if prefix in own else set()

    def rename(name: str) -> str | None:
        short = name if prefix in own else name.removeprefix(f"{prefix}.")
        root = short.partition(".")[0]
        return short if root in own else f"{prefix}.{short}" if root in inner else None

    return renamed(structure, rename)


def renamed(structure: Structure, rename: Callable[[str], str | None]) -> Structure:
    """`structure` with other names; what `rename` has none for is left out."""

    def keys(values: dict[str, Value]) -> dict[str, Value]:
        return {new: value for name, value in values.items() if (new := rename(name)) is not None}

    def names(values: Iterable[str]) -> tuple[str, ...]:
        return tuple(new for name in values if (new := rename(name)) is not None)

    layouts = {layout.path: layout for layout in structure.layouts}
    return replace(
        structure,
        layouts=tuple(replace(layout, path=path) for path, layout in keys(layouts).items()),
        packed=keys(structure.packed),
        cast=names(structure.cast),
        dtypes=keys(structure.dtypes),
        unfused=names(structure.unfused),
        latent=keys(structure.latent),
    )
