"""What every parameter is for. A role is given to a module and holds for all below it, until one deeper has its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import nn

from mote_quant.anatomy.block import pair
from mote_quant.anatomy.feedforward import expert_holders, scan
from mote_quant.anatomy.structure import (
    ask,
    decoder_layers,
    join,
    language_path,
    linear_shape,
    path_of,
    towers,
    under,
)
from mote_quant.recipe.schema import Role

Given = Iterator[tuple[str, Role]]


def roles(model: nn.Module) -> Callable[[str], Role]:
    """A function from the path of a module to the role of its own parameters. Nothing is without one: `other`."""
    given: dict[str, Role] = {"": "other"}
    for rule in (_beside_language, _layers, _norms, _embeddings, _head):
        given.update(rule(model))
    for final in (_native_experts, _towers, _declared):
        for path, role in final(model):
            given = {known: value for known, value in given.items() if not under(known, path)} | {path: role}
    return lambda path: _nearest(given, path)


def _nearest(given: dict[str, Role], path: str) -> Role:
    while path not in given:
        path = path.rpartition(".")[0]
    return given[path]


def _beside_language(model: nn.Module) -> Given:
    """Whatever stands beside language model and vision tower, and has weights, projects one into the other."""
    language, beside = language_path(model), towers(model)
    yield language, "other"
    if "vision" not in beside.values():
        return
    parts = (*beside, language)
    for path in _containers(language):
        for name, child in model.get_submodule(path).named_children():
            place = join(path, name)
            holds_a_part = any(under(part, place) for part in parts)
            if not holds_a_part and any(True for _ in child.parameters()):
                yield place, "projector"


def _containers(path: str) -> Iterator[str]:
    while path:
        path = path.rpartition(".")[0]
        yield path


def _layers(model: nn.Module) -> Given:
    """In a decoder layer, the feed-forward is `ffn` and what else holds linear layers is `attention`."""
    for path, layer in decoder_layers(model):
        for name, child in layer.named_children():
            if any(linear_shape(module) for module in child.modules()):
                yield join(path, name), "attention"
    for block in scan(model):
        if not block.inline:
            yield block.path, "ffn"
        for name in block.linears.values():
            yield join(block.path, name), "ffn"


def _native_experts(model: nn.Module) -> Given:
    """In a model that came with experts: beside them, feed-forward blocks are shared and the rest is the router."""
    blocks = [block.path for block in scan(model) if not block.inline]
    for path, layer in decoder_layers(model):
        holders = list(expert_holders(path, layer))
        for block in blocks:
            if holders and under(block, path):
                yield block, "shared"
        for holder in holders:
            mixture = holder.rpartition(".")[0]
            if mixture != path:
                yield mixture, "router"
                for name, child in model.get_submodule(mixture).named_children():
                    if pair(child):
                        yield join(mixture, name), "shared"
        for holder in holders:
            yield holder, "routed"


def _norms(model: nn.Module) -> Given:
    root = language_path(model)
    for path, module in model.get_submodule(root).named_modules(prefix=root):
        if _is_norm(module):
            yield path, "norm"


def _is_norm(module: nn.Module) -> bool:
    """Only vectors inside, and a class name that says norm: the shape of a scale alone does not set a norm apart."""
    name = type(module).__name__.lower()
    if not ("norm" in name or name.endswith("ln")):
        return False
    vectors = [parameter.dim() <= 1 for parameter in module.parameters()]
    return bool(vectors) and all(vectors) and linear_shape(module) is None


def _embeddings(model: nn.Module) -> Given:
    """The input embedding, and every table of the language model beside it (positions)."""
    root = language_path(model)
    for path, module in model.get_submodule(root).named_modules(prefix=root):
        if isinstance(module, nn.Embedding):
            yield path, "embedding"
    path = path_of(model, ask(model, "get_input_embeddings"))
    if path is not None:
        yield path, "embedding"


def _head(model: nn.Module) -> Given:
    path = path_of(model, ask(model, "get_output_embeddings"))
    if path is not None:
        yield path, "head"


def _towers(model: nn.Module) -> Given:
    yield from towers(model).items()


def _declared(model: nn.Module) -> Given:
    """What modules say of their own children (of themselves: ""), `parameter_roles`; it overrides every rule."""
    for path, module in model.named_modules():
        if hasattr(module, "parameter_roles"):
            yield path, "other"
            for name, role in module.parameter_roles.items():
                yield join(path, name), role
