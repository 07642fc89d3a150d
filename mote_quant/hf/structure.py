"""What our modules changed about a dense model, as data: kept in `config.json`, enough to rebuild the skeleton."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.errors import ArtifactError, FormatError, ModelError
from mote_quant.hf.stored import WHERE, StoredStructure, read
from mote_quant.hf.unfuse import unfuse
from mote_quant.kernels.cast_linear import CastLinear
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import MoteBlock, MoteLayout, blocks, install
from mote_quant.moe.build import latent_linear
from mote_quant.moe.native import NativeExperts
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.plain import settings
from mote_quant.recipe.schema import PACKED, Bits, PackedBits, QatBits, trains, wording

PackedSpec = PackedBits


@dataclass(frozen=True)
class Structure:
    """`layouts`: the mixture layers. `packed`: modules held as packed bytes. `cast`: linear layers that cast on use.

    `dtypes`: parameters that are not of the model's own type. `unfused`: the model's own experts, taken apart.
    `latent`: linear layers of the model's own experts that hold floats in training for a format.
    """

    layouts: tuple[MoteLayout, ...] = ()
    packed: dict[str, PackedSpec] = field(default_factory=dict)
    cast: tuple[str, ...] = ()
    dtypes: dict[str, str] = field(default_factory=dict)
    unfused: tuple[str, ...] = ()
    latent: dict[str, QatBits] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, modules grouped by spec; `from_dict` is its inverse."""
        by_dtype: dict[str, list[str]] = {}
        for name, dtype in self.dtypes.items():
            by_dtype.setdefault(dtype, []).append(name)
        layouts = [layout.to_dict() for layout in self.layouts]
        values = {"layouts": layouts, "packed": _grouped(self.packed), "cast": list(self.cast), "dtypes": by_dtype}
        # Left out where there are none: readers of files without them need not know of them.
        later = {"unfused": list(self.unfused), "latent": _grouped(self.latent)}
        return values | {name: value for name, value in later.items() if value}

    def part(self, within: Callable[[str], bool]) -> Structure:
        """What of it lies in modules that `within` says yes to."""
        return Structure(
            tuple(layout for layout in self.layouts if within(layout.path)),
            {name: spec for name, spec in self.packed.items() if within(name)},
            tuple(filter(within, self.cast)),
            {name: dtype for name, dtype in self.dtypes.items() if within(name.rpartition(".")[0])},
            tuple(filter(within, self.unfused)),
            {name: spec for name, spec in self.latent.items() if within(name)},
        )

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Structure:
        """The structure that `to_dict` described; ArtifactError when it is malformed."""
        stored = read(StoredStructure, values, f"{WHERE}.structure")
        packed = {name: _packed_spec(group.spec) for group in stored.packed for name in group.modules}
        dtypes = {name: dtype for dtype, names in stored.dtypes.items() for name in names}
        latent = {name: _latent_spec(group.spec) for group in stored.latent for name in group.modules}
        return cls(tuple(stored.layouts), packed, tuple(stored.cast), dtypes, tuple(stored.unfused), latent)


def _grouped(specs: Mapping[str, PackedSpec]) -> list[dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for module, spec in specs.items():
        groups.setdefault(repr(spec), {"spec": settings(spec), "modules": []})["modules"].append(module)
    return list(groups.values())


def _latent_spec(spec: Bits) -> QatBits:
    if not trains(spec):
        raise ArtifactError(f"{WHERE}.structure.latent cannot be read: {wording(spec)} is not found by training")
    return spec


def _packed_spec(spec: Bits) -> PackedSpec:
    if not isinstance(spec, PACKED):
        raise ArtifactError(f"{WHERE}.structure.packed cannot be read: {spec.format} is no packed format")
    return spec


def structure_of(model: nn.Module, *, latent: bool) -> Structure:
    """Read the structure off a live model. Without `latent`, latent layers count as packed: so they will be saved."""
    packed: dict[str, PackedSpec] = {}
    for name, module in model.named_modules():
        if isinstance(module, PackedLinear) or (isinstance(module, QatLinear) and not latent):
            packed[name] = module.spec
    trained = _native_latents(model) if latent else {}
    layouts = tuple(block.layout for block in blocks(model).values())
    cast_on_use = tuple(name for name, module in model.named_modules() if isinstance(module, CastLinear))
    unfused = tuple(name for name, module in model.named_modules() if isinstance(module, NativeExperts))
    return Structure(layouts, packed, cast_on_use, _uncommon_dtypes(model, packed, trained), unfused, trained)


def _native_latents(model: nn.Module) -> dict[str, QatBits]:
    """Latent layers that no layout of ours speaks of."""
    ours = tuple(f"{path}." for path in blocks(model))
    return {
        name: module.spec
        for name, module in model.named_modules()
        if isinstance(module, QatLinear) and not name.startswith(ours)
    }


def _uncommon_dtypes(
    model: nn.Module, packed: Mapping[str, PackedSpec], latent: Mapping[str, QatBits]
) -> dict[str, str]:
    """Parameters that loading in the model's own type would cast: their type has to be remembered."""
    own = getattr(model, "dtype", torch.float32)
    float32 = {name for path, block in blocks(model).items() for name in _built_in_float32(path, block)}
    float32 |= {f"{path}.{name}" for path in latent for name, _ in model.get_submodule(path).named_parameters()}
    packed_weights = {f"{name}.{tensor}" for name in packed for tensor in ("weight", "weight_scale")}
    named = {name: p.dtype for name, p in model.named_parameters() if p.numel() and name not in packed_weights}
    uncommon = {name: dtype for name, dtype in named.items() if dtype != (torch.float32 if name in float32 else own)}
    return {name: str(dtype).removeprefix("torch.") for name, dtype in uncommon.items()}


def _built_in_float32(path: str, block: MoteBlock) -> Iterator[str]:
    """The parameters of a block that `install` makes float32 in any model: the router's, and latent projections'."""
    yield from (name for name, _ in block.gate.named_parameters(prefix=f"{path}.gate"))
    for name, _ in block.experts.named_parameters(prefix=f"{path}.experts"):
        if block.layout.qat.keys() & name.split("."):
            yield name


def rebuild(model: nn.Module, structure: Structure) -> None:
    """Give a dense model (a skeleton on meta, or a live one) our modules, uninitialised, in the place of its own.

    ArtifactError when the structure is not one of this model.
    """
    try:
        _rebuild(model, structure)
    except (AttributeError, FormatError, LookupError, ModelError, RuntimeError, TypeError, ValueError) as error:
        raise ArtifactError(f"{WHERE}.structure does not fit this model: {error}") from error


def _rebuild(model: nn.Module, structure: Structure) -> None:
    unfuse(model, structure.unfused)
    for layout in structure.layouts:
        install(model, layout)
    for name, spec in structure.packed.items():
        module = model.get_submodule(name)
        # A live model may have come with it: a base that was quantized before.
        if not (isinstance(module, PackedLinear) and module.spec == spec):
            replace_module(model, name, empty_packed(module, spec))
    for name, spec in structure.latent.items():
        replace_module(model, name, empty_latent(cast(nn.Linear, model.get_submodule(name)), spec))
    for name in structure.cast:
        replace_module(model, name, CastLinear.of(cast(nn.Linear, model.get_submodule(name))))
    parameters = dict(model.named_parameters())
    for name, dtype in structure.dtypes.items():
        if name not in parameters:
            raise ValueError(f"it has no parameter {name}")
        parameters[name].data = parameters[name].data.to(_dtype(dtype))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"there is no type {name}")
    return dtype


def empty_packed(linear: nn.Module, spec: PackedSpec) -> PackedLinear:
    """A PackedLinear with room for the weight of `linear` (Linear or Conv1D), on the same device."""
    weight = cast(Tensor, linear.weight)
    rows, columns = reversed(weight.shape) if is_transposed(linear) else weight.shape
    bias = cast("Tensor | None", getattr(linear, "bias", None))
    packed = PackedLinear.empty(spec, columns, rows, bias is not None, weight.dtype, weight.device)
    if packed.bias is not None and bias is not None:
        packed.bias.data = packed.bias.data.to(bias.dtype)
    return packed


def empty_latent(linear: nn.Linear, spec: QatBits) -> QatLinear:
    """A QatLinear with room for the weight of `linear`, on the same device; its numbers are not yet anything."""
    made = latent_linear(linear.in_features, linear.out_features, spec, linear.bias is not None)
    return made.to_empty(device=linear.weight.device)


def is_transposed(linear: nn.Module) -> bool:
    """True for transformers' Conv1D (GPT-2), whose weight is [in, out]."""
    return hasattr(linear, "nf") and not hasattr(linear, "in_features")


def replace_module(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
