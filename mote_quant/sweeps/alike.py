"""Weighing many recipes on one model, quickly: decoder layers that are built alike are planned once, and counted.

The result is that of the full plan, byte by byte. Where a layer might count for itself (rules that speak of names,
tensors that layers share, a format search over the whole model), the full plan is made.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mote_quant.anatomy.inventory import stored_tensors
from mote_quant.anatomy.structure import decoder_layers, under
from mote_quant.errors import MoteError
from mote_quant.memory.ledger import Ledger, weigh
from mote_quant.planning import plan_on
from mote_quant.recipe import Recipe
from mote_quant.recipe.schema import ROLES, AutoBits, Step
from mote_quant.steps.upcycle import plan_layouts

Layer = tuple[str, nn.Module]


@dataclass(frozen=True)
class Scales:
    """A meta-device model on which recipes are weighed; it stays as it is.

    `builds` says of each decoder layer how it is built; None where layers cannot be told from one another by that.
    """

    skeleton: nn.Module
    layers: tuple[Layer, ...]
    builds: tuple[Any, ...] | None

    @classmethod
    def of(cls, skeleton: nn.Module) -> Scales:
        """Look at a model once, for many recipes."""
        layers = tuple(decoder_layers(skeleton))
        apart = layers and not _has_our_modules(skeleton) and not _shares(skeleton, layers)
        return cls(skeleton, layers, tuple(_build(layer) for _, layer in layers) if apart else None)

    def weigh(self, recipe: Recipe) -> Ledger:
        """What `recipe` makes of the model weighs: `plan_on(...).result`. Raises what `plan_on` raises."""
        try:
            found = self._weigh_thinned(recipe)
        except MoteError:
            # Again, for a message that names the layers of the whole model.
            found = None
        return found or plan_on(recipe, copy.deepcopy(self.skeleton)).result

    def _weigh_thinned(self, recipe: Recipe) -> Ledger | None:
        """None where layers of a kind might not weigh the same."""
        if self.builds is None or not _speaks_of_roles(recipe):
            return None
        upcycled = [self._upcycled(step) for step in recipe.pipeline]
        kinds: dict[Any, list[int]] = {}
        for index, build in enumerate(self.builds):
            kinds.setdefault((build, *(index in chosen for chosen in upcycled)), []).append(index)
        firsts = [members[0] for members in kinds.values()]
        thinned = _thinned(self.skeleton, self.layers, firsts, tuple(map(len, kinds.values())))
        if not thinned.is_sound():
            return None
        chosen = [[index for index, first in enumerate(firsts) if first in members] for members in upcycled]
        plan_on(_upcycling(recipe, chosen), thinned.model)
        return weigh(thinned.model, thinned.times)

    def _upcycled(self, step: Step) -> frozenset[int]:
        """The decoder layers that a step makes mixtures of."""
        if step.upcycle is None:
            return frozenset()
        mixtures = [layout.path for layout in plan_layouts(self.skeleton, step.upcycle)]
        return frozenset(
            index for index, (path, _) in enumerate(self.layers) if any(under(mixture, path) for mixture in mixtures)
        )


@dataclass(frozen=True)
class _Thinned:
    """A model with one layer of each kind: `path` is that of their list, `counts` how often the model has each."""

    model: nn.Module
    path: str
    counts: tuple[int, ...]

    def is_sound(self) -> bool:
        """Whether the layers that are left are still what counts as the decoder's."""
        return [path for path, _ in decoder_layers(self.model)] == [f"{self.path}.{i}" for i in range(len(self.counts))]

    def times(self, path: str) -> int:
        """How often the whole model has what this one has at `path`."""
        if path == self.path or not under(path, self.path):
            return 1
        return self.counts[int(path[len(self.path) + 1 :].partition(".")[0])]


def _thinned(skeleton: nn.Module, layers: Sequence[Layer], firsts: Sequence[int], counts: tuple[int, ...]) -> _Thinned:
    path = layers[0][0].rpartition(".")[0]
    kept = nn.ModuleList(copy.deepcopy(layers[first][1]) for first in firsts)
    # What is in the memo counts as copied: the copy holds `kept` in the place of the list of all layers.
    return _Thinned(copy.deepcopy(skeleton, {id(skeleton.get_submodule(path)): kept}), path, counts)


def _speaks_of_roles(recipe: Recipe) -> bool:
    """Whether its rules hold for every layer alike."""
    targets = {*recipe.bits, *(target for step in recipe.pipeline if step.train for target in step.train.what)}
    return targets <= set(ROLES) and not any(isinstance(spec, AutoBits) for spec in recipe.bits.values())


def _has_our_modules(skeleton: nn.Module) -> bool:
    """Whether a recipe was carried out on this model before: modules then differ in more than their tensors."""
    return any(hasattr(module, "parameter_roles") or hasattr(module, "spec") for module in skeleton.modules())


def _shares(skeleton: nn.Module, layers: Sequence[Layer]) -> bool:
    """Whether a layer holds a tensor that another layer, or what is beside the layers, holds too."""
    inside = [{id(tensor) for tensor in _tensors(layer)} for _, layer in layers]
    beside = {id(tensor) for path, tensor in _placed(skeleton) if not any(under(path, layer) for layer, _ in layers)}
    return len(set().union(beside, *inside)) != len(beside) + sum(map(len, inside))


def _tensors(module: nn.Module) -> Iterator[Any]:
    yield from module.parameters()
    yield from module.buffers()


def _placed(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _build(layer: nn.Module) -> tuple[Any, ...]:
    """Everything about a layer that a plan can see: modules, tensors and types."""
    return tuple(
        (path, type(module), tuple(_said(module)), tuple(sorted(module._non_persistent_buffers_set)))
        for path, module in layer.named_modules(remove_duplicate=False)
    )


def _said(module: nn.Module) -> Iterator[tuple[Any, ...]]:
    stored = {name for name, _ in stored_tensors(module)}
    for name, tensor in _placed_here(module):
        yield name, tuple(tensor.shape), tensor.dtype, name in stored


def _placed_here(module: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from module.named_parameters(recurse=False, remove_duplicate=False)
    yield from module.named_buffers(recurse=False, remove_duplicate=False)


def _upcycling(recipe: Recipe, chosen: Sequence[Sequence[int]]) -> Recipe:
    """`recipe` with the up-cycled layers of each step said one by one."""
    steps = [
        step.model_copy(update={"upcycle": step.upcycle.model_copy(update={"layers": list(layers)})})
        if step.upcycle
        else step
        for step, layers in zip(recipe.pipeline, chosen, strict=True)
    ]
    return recipe.model_copy(update={"pipeline": steps})
