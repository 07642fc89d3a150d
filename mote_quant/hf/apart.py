"""Which fused experts a recipe gives formats that they can only take one by one, told before anything is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn

from mote_quant.anatomy.inventory import aliases, inventory
from mote_quant.anatomy.structure import ask, join, path_of
from mote_quant.errors import UnsupportedModelError
from mote_quant.formats import dtype_of
from mote_quant.hf.fused import fused_experts, read_fused
from mote_quant.recipe.schema import Bits, FloatBits, trains
from mote_quant.recipe.targets import Candidate, matches


def to_unfuse(bits: Mapping[str, Bits], model: nn.Module) -> list[str]:
    """Paths of the fused experts that `bits` gives a format they can only take one by one.

    Those that cannot be taken apart are left to rules that mean more than experts, as all that a rule cannot change is;
    UnsupportedModelError for a rule that means nothing else.
    """
    holders = fused_experts(model)
    if not holders:
        return []
    main = _main_dtype(bits, model)
    for target in [target for target, spec in bits.items() if _apart(spec, main)]:
        _check(target, model, holders)
    return _asked(bits, holders, lambda spec: _apart(spec, main))


def to_train(bits: Mapping[str, Bits], model: nn.Module) -> list[str]:
    """Those of them that are apart before anything else is done, for `bits` gives them a format that is trained."""
    return _asked(bits, fused_experts(model), trains)


def _asked(
    bits: Mapping[str, Bits], holders: Mapping[str, nn.Module], wanted: Callable[[Bits | None], bool]
) -> list[str]:
    """The holders of an expert to which the first rule that means it gives what is `wanted`."""
    return [
        path
        for path, module in holders.items()
        if any(wanted(_first_rule(bits, [name])) for name in _one_by_one(path, module))
    ]


def _check(target: str, model: nn.Module, holders: Mapping[str, nn.Module]) -> None:
    """UnsupportedModelError when all that `target` means is fused experts that cannot be taken apart."""
    meant = {p.module for p in inventory(model) if matches(target, p.candidate())}
    if meant <= holders.keys():
        for path in sorted(meant):
            read_fused(path, holders[path])


def _one_by_one(path: str, module: nn.Module) -> Iterator[Candidate]:
    """What a target sees of the experts once they are apart; nothing if they cannot be."""
    with suppress(UnsupportedModelError):
        layout = read_fused(path, module)
        for index, kind in product(range(layout.experts), layout.linears):
            name = f"{path}.{index}.{kind}"
            yield Candidate(f"{name}.weight", name, nn.Linear.__name__, "routed")


def _apart(spec: Bits | None, main: torch.dtype) -> bool:
    """Whether a fused parameter cannot take `spec`: it is packed, or a type that only a linear layer casts on use."""
    if isinstance(spec, FloatBits):
        return dtype_of(spec.format) != main
    return spec is not None


def _first_rule(bits: Mapping[str, Bits], names: Sequence[Candidate]) -> Bits | None:
    return next((spec for target, spec in bits.items() if any(matches(target, name) for name in names)), None)


def _main_dtype(bits: Mapping[str, Bits], model: nn.Module) -> torch.dtype:
    """The type the model will compute in: that of its input embedding, once `bits` has been carried out."""
    table = ask(model, "get_input_embeddings")
    name = join(path_of(model, table) or "", "weight")
    names = [p for p in [*inventory(model), *aliases(model)] if name in (p.name, p.tied_to)]
    spec = _first_rule(bits, [parameter.candidate() for parameter in names])
    return dtype_of(spec.format) if isinstance(spec, FloatBits) else cast(Tensor, table.weight).dtype
