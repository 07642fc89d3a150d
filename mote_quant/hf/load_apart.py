"""A model whose experts are loaded one by one, as its files hold them: mapped, and never stacked in memory.

transformers stacks them into fused parameters, which is a second copy of nearly all of the model. Files that hold them
fused are mapped so, and the experts are views of that.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from mote_quant.errors import ArtifactError, UnsupportedModelError
from mote_quant.hf.conversions import merges
from mote_quant.hf.foreign.files import WeightFiles
from mote_quant.hf.fused import DOWN, FusedExperts, fused_experts, read_fused
from mote_quant.hf.skeleton import model_class, quantization_of, read_config, skeleton_of
from mote_quant.hf.structure import Structure
from mote_quant.hf.unfuse import unfuse, verify
from mote_quant.moe.native import GUARD_SHAPE, NativeExperts

# The name of a weight of one expert, up to its number.
_OF_ONE = re.compile(r"(.*\.\d+)\.[^.]+\.weight")


class _Stored(NamedTuple):
    """One linear layer of one expert: its `name` in the files as an expert of ours names it, and whose it is."""

    name: str
    path: str


def load_apart(folder: Path, paths: Collection[str] | None = None) -> nn.Module:
    """The dense model in `folder` with the experts at `paths` (None: all that can be) taken apart.

    Weights are maps of the safetensors files, in their types. Raises ArtifactError, UnsupportedModelError for experts
    that cannot be taken apart, ModelError.
    """
    config = read_config(folder)
    if quantization_of(config) is not None:
        raise UnsupportedModelError(f"{folder} is quantized already; its experts are loaded as they are")
    skeleton = skeleton_of(config)
    layouts = _layouts(skeleton, paths)
    files = WeightFiles(folder)
    stored = _stored(skeleton, files, layouts)
    apart = _complete(stored.values(), layouts)
    names = {key: one.name for key, one in stored.items() if one.path in apart}
    tensors = {names.get(key, key): files[key] for key in files}
    chosen = [layouts[path] for path in apart]
    model = _load(folder, config, tensors | _guards(skeleton, stored, chosen), apart)
    _verify_one(skeleton, model, chosen)
    rest = [path for path in layouts if path not in apart]
    if rest:
        unfuse(model, rest, views=True)
    return _as_ours(model)


def _layouts(skeleton: nn.Module, paths: Collection[str] | None) -> dict[str, FusedExperts]:
    holders = fused_experts(skeleton)
    if paths is not None:
        for path in paths:
            if path not in holders:
                raise UnsupportedModelError(f"{path} holds no fused experts; those of this model are {list(holders)}")
        return {path: read_fused(path, holders[path]) for path in paths}
    found: dict[str, FusedExperts] = {}
    for path, module in holders.items():
        with suppress(UnsupportedModelError):
            found[path] = read_fused(path, module)
    return found


def _stored(skeleton: nn.Module, keys: Iterable[str], layouts: Mapping[str, FusedExperts]) -> dict[str, _Stored]:
    """The keys of the files that transformers would stack into one of `layouts`."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(skeleton)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    targets = {f"{path}.{name}": layout for path, layout in layouts.items() for name in (layout.first, DOWN)}
    prefix, state = cast(Any, skeleton).base_model_prefix, skeleton.state_dict()
    found = {}
    for key in keys:
        target, pattern = rename_source_key(key, renamings, converters, prefix, state)
        one = _OF_ONE.fullmatch(key)
        if pattern is None or one is None or target not in targets:
            continue
        converter = next(rule for rule in converters if pattern in rule.source_patterns)
        kind = _kind(converter, pattern, target.rpartition(".")[2], targets[target])
        if kind is not None:
            found[key] = _Stored(f"{one[1]}.{kind}.weight", targets[target].path)
    return found


def _kind(converter: Any, pattern: str, name: str, layout: FusedExperts) -> str | None:
    """Which linear layer of an expert `pattern` stands for; None unless all of them are only stacked."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    stack, *rest = converter.operations
    stacked = isinstance(stack, MergeModulelist) and all(isinstance(step, Concatenate) for step in rest)
    if not stacked or layout.transposed or layout.interleaved or layout.bias:
        return None
    kinds = [DOWN] if name == DOWN else [kind for kind in layout.linears if kind != DOWN]
    sources = converter.source_patterns
    return kinds[sources.index(pattern)] if len(sources) == len(kinds) else None


def _complete(stored: Iterable[_Stored], layouts: Mapping[str, FusedExperts]) -> list[str]:
    """The paths of which every linear layer is there."""
    counts: dict[str, int] = {}
    for one in stored:
        counts[one.path] = counts.get(one.path, 0) + 1
    return [path for path, layout in layouts.items() if counts.get(path) == layout.experts * len(layout.linears)]


def _guards(skeleton: nn.Module, stored: Mapping[str, _Stored], layouts: Iterable[FusedExperts]) -> dict[str, Tensor]:
    """What a file of ours holds of the fused parameters (see `NativeExperts`), as transformers divides it on saving."""
    count, rows, columns = GUARD_SHAPE
    guards: dict[str, Tensor] = {}
    for layout in layouts:
        if not merges(skeleton, layout.path, layout.first):
            firsts = layout.linears[:-1]
            names = {f".{index}.{kind}.weight" for index in range(count) for kind in firsts}
            keys = [key for key, one in stored.items() if one.path == layout.path and one.name.endswith(tuple(names))]
            shape = (rows // len(firsts), columns)
            guards |= {key: torch.empty(shape, dtype=cast(Any, skeleton).dtype) for key in keys}
    return guards


def _load(folder: Path, config: Any, state: dict[str, Tensor], apart: Collection[str]) -> nn.Module:
    """Through transformers' own loading."""
    from transformers import GenerationConfig

    from mote_quant.hf.quantizer import MoteConfig

    config = copy.deepcopy(config)
    if apart:
        config.quantization_config = MoteConfig(Structure(unfused=tuple(apart)).to_dict()).to_dict()
    model, info = model_class(config).from_pretrained(
        None, config=config, state_dict=state, dtype="auto", output_loading_info=True
    )
    if info["missing_keys"]:
        raise ArtifactError(f"{folder} lacks {', '.join(sorted(info['missing_keys']))}; copy or download it again")
    # What transformers does itself when it is given a folder.
    model.name_or_path = model.config.name_or_path = str(folder)
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(folder))
    return cast(nn.Module, model)


def _verify_one(skeleton: nn.Module, model: nn.Module, layouts: Iterable[FusedExperts]) -> None:
    """UnsupportedModelError unless the model's own experts compute what ours do; the first of each class is run."""
    seen: set[type] = set()
    cast(Any, skeleton).config.get_text_config()._experts_implementation = "eager"
    for layout in layouts:
        fused = skeleton.get_submodule(layout.path)
        if type(fused) not in seen:
            seen.add(type(fused))
            native = cast(NativeExperts, model.get_submodule(layout.path))
            verify(_with_one(fused, native, layout), native, layout, (0, 0))


def _with_one(fused: nn.Module, native: NativeExperts, layout: FusedExperts) -> nn.Module:
    """The model's own experts, all of them with the weights of our first one; in memory they are one."""
    *first, down = (cast(Tensor, native.experts[0].get_submodule(kind).weight) for kind in layout.linears)
    weights = {layout.first: torch.cat(first), DOWN: down}
    shell = fused.__class__.__new__(fused.__class__)
    shell.__dict__ |= fused.__dict__ | {"_parameters": {}}
    for name, weight in weights.items():
        stacked = weight.detach().expand(layout.experts, *weight.shape)
        shell.register_parameter(name, nn.Parameter(stacked, requires_grad=False))
    return shell


def _as_ours(model: nn.Module) -> nn.Module:
    from mote_quant.hf.attach import attach

    attach(model)
    return model
