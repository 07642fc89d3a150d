"""`plan`: what a recipe will do to a model and what the result will weigh, found on the meta device beforehand.

The plan builds the very skeleton that `from_pretrained` will rebuild, so predicted and stored bytes cannot drift apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from mote_quant.anatomy.coverage import Row, assign_bits, coverage
from mote_quant.data.embedded import embedded
from mote_quant.data.opener import context_of, too_long
from mote_quant.errors import DataError, RequestError, TargetError
from mote_quant.hf.apart import to_train, to_unfuse
from mote_quant.hf.latents import make_latent
from mote_quant.hf.structure import empty_packed, replace_module
from mote_quant.hf.unfuse import unfuse
from mote_quant.memory.ledger import Ledger, weigh
from mote_quant.moe import MoteLayout, blocks, install
from mote_quant.moe.build import latent_linear
from mote_quant.moe.layout import Projection
from mote_quant.moe.skip import check_skippable
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe import Recipe, load
from mote_quant.recipe.schema import (
    AutoBits,
    Bits,
    CodebookBits,
    FloatBits,
    IntegerBits,
    Quantize,
    Train,
    Upcycle,
    trains,
)
from mote_quant.steps.quantize.allocate import check_budgets
from mote_quant.steps.quantize.casts import cast_parameters
from mote_quant.steps.train.balance import check_balance
from mote_quant.steps.train.checkpointing import check_checkpointing
from mote_quant.steps.train.rates import rate_owners
from mote_quant.steps.train.selection import by_role, trainable_names
from mote_quant.steps.upcycle import plan_layouts
from mote_quant.steps.upcycle.trained import check_trained, trained_projections


@dataclass(frozen=True)
class Plan:
    """What `apply` will carry out. `dense` and `result` weigh the model before and after; `trained`: a row a step."""

    recipe: Recipe
    layouts: tuple[MoteLayout, ...]
    formats: dict[str, Bits]
    coverage: tuple[Row, ...]
    trained: tuple[dict[str, Any], ...]
    dense: Ledger
    result: Ledger

    def settled(self, model: nn.Module) -> Plan:
        """The plan when `model` is finished: what `auto` chose is known only then."""
        if not any(isinstance(spec, AutoBits) for spec in self.recipe.bits.values()):
            return self
        skeleton = skeleton_for(model)
        _pack_latents(skeleton)
        return replace(self, result=weigh(skeleton))

    def to_dict(self) -> dict[str, Any]:
        """The stable JSON of `mote-quant plan --json`."""
        return self.result.to_json() | {
            "recipe": self.recipe.name,
            "mixture_layers": [layout.path for layout in self.layouts],
            "coverage": [asdict(row) for row in self.coverage],
            "train": list(self.trained),
            "dense": self.dense.to_json(),
        }


def plan(recipe: str | Path | Mapping[str, Any] | Recipe, model: Any = None) -> Plan:
    """Plan `recipe` for `model`: a model, a config, a folder, or the name of shipped facts (None: the recipe's own).

    Raises RequestError branches: RecipeError, TargetError, FormatError, ModelError, DataError.
    """
    loaded = load(recipe)
    skeleton = skeleton_for(loaded.model if model is None else model)
    check_lengths(loaded, skeleton)
    return plan_on(loaded, skeleton)


def check_lengths(recipe: Recipe, model: nn.Module) -> None:
    """DataError naming each `max_length` of the recipe that is more than `model` can take, and what to say instead.

    Not for a run whose data is a Source: those are not cut.
    """
    context, wrong = context_of(model), []
    for index, step in enumerate(recipe.pipeline):
        if isinstance(step.config, Train):
            key, length = f"pipeline.{index}.train.max_length", step.config.max_length
        elif isinstance(step.config, Quantize) and step.config.calibration is not None:
            key, length = f"pipeline.{index}.quantize.calibration.max_length", step.config.calibration.max_length
        else:
            continue
        if (why := too_long(length, context)) is not None:
            wrong.append(f"{key}: {why}; say --set {key}={context}")
    if wrong:
        raise DataError("\n".join(wrong))


def skeleton_for(model: Any) -> nn.Module:
    """A meta-device model to plan on."""
    from mote_quant.hf.loading import skeleton_in
    from mote_quant.hf.skeleton import shadow, skeleton_of
    from mote_quant.memory import facts

    if model is None:
        raise RequestError("name a model to plan for: --model, or `model:` in the recipe")
    if isinstance(model, nn.Module):
        return shadow(model)
    if not isinstance(model, str | Path):
        return skeleton_of(model)
    if Path(model).is_dir():
        return skeleton_in(Path(model))
    built_in = embedded(str(model))
    return skeleton_of(facts.load(str(model)) if built_in is None else built_in.config())


def plan_on(recipe: Recipe, skeleton: nn.Module) -> Plan:
    """Plan on a meta-device model, which is changed on the way."""
    dense = weigh(skeleton)
    layouts: tuple[MoteLayout, ...] = ()
    trained = []
    moved: set[str] = set()
    no_owner: list[tuple[Train, TargetError]] = []
    unfuse(skeleton, to_train(recipe.bits, skeleton))
    for step in recipe.pipeline:
        if isinstance(step.config, Upcycle):
            layouts = plan_layouts(skeleton, step.config)
            for layout in layouts:
                install(skeleton, layout)
        elif isinstance(step.config, Train):
            chosen = trainable_names(skeleton, step.config.what)
            check_balance(skeleton, step.config, chosen)
            if step.config.gradient_checkpointing:
                check_checkpointing(skeleton)
            try:
                rate_owners(skeleton, chosen, step.config)
            except TargetError as error:
                no_owner.append((step.config, error))
            moved |= chosen.keys()
            trained.append(by_role(skeleton, chosen))
    unfuse(skeleton, to_unfuse(recipe.bits, skeleton))
    formats = assign_bits(recipe.bits, skeleton)
    check_trained(skeleton, formats, layouts, moved)
    check_budgets({name: spec for name, spec in formats.items() if isinstance(spec, AutoBits)}, skeleton)
    if any(isinstance(step.config, Quantize) and step.config.skip_rate for step in recipe.pipeline):
        check_skippable(skeleton)
    rows = coverage(recipe.bits, skeleton)
    layouts = tuple(replace(layout, qat=trained_projections(layout, skeleton, formats)) for layout in layouts)
    for layout in layouts:
        _make_latent(skeleton, layout)
    make_latent(skeleton, formats)
    _check_rates(skeleton, no_owner)
    _carry_out(skeleton, formats)
    if recipe.pipeline[-1].name == "quantize":
        _pack_latents(skeleton)
    return Plan(recipe, layouts, formats, tuple(rows), tuple(trained), dense, weigh(skeleton))


def _check_rates(skeleton: nn.Module, no_owner: list[tuple[Train, TargetError]]) -> None:
    """TargetError for a rate of what does not train: told here, not when the model is up-cycled and the run begun.

    A train step met a target that meant nothing; a learned scale is there only with the latent layers, now.
    """
    for config, error in no_owner:
        with suppress(TargetError):
            rate_owners(skeleton, trainable_names(skeleton, config.what), config)
            continue
        raise error


def _make_latent(skeleton: nn.Module, layout: MoteLayout) -> None:
    """Give a layer's experts the latent layers up-cycling will give them."""
    for name, module in list(blocks(skeleton)[layout.path].experts.named_modules()):
        spec = layout.qat.get(cast(Projection, name.rpartition(".")[2]))
        if spec is not None and isinstance(module, nn.Linear):
            latent = latent_linear(module.in_features, module.out_features, spec, module.bias is not None)
            replace_module(skeleton, f"{layout.path}.experts.{name}", latent)


def _carry_out(skeleton: nn.Module, formats: dict[str, Bits]) -> None:
    for name, spec in formats.items():
        if isinstance(spec, IntegerBits | CodebookBits | AutoBits) and not trains(spec):
            planned = spec.uniform if isinstance(spec, AutoBits) else spec
            replace_module(skeleton, name, empty_packed(skeleton.get_submodule(name), planned))
    with torch.no_grad():
        cast_parameters(skeleton, {name: spec for name, spec in formats.items() if isinstance(spec, FloatBits)})


def _pack_latents(skeleton: nn.Module) -> None:
    """A finished model stores its latent layers packed, those no rule named too."""
    for name, module in list(skeleton.named_modules()):
        if isinstance(module, QatLinear):
            replace_module(skeleton, name, empty_packed(module, module.spec))
