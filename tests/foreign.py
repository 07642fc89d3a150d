"""Folders as other libraries write them, from models with packed layers; packed bit by bit in plain Python."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

import mote_quant
from mote_quant.anatomy.feedforward import find_feedforwards
from mote_quant.anatomy.inventory import inventory
from mote_quant.anatomy.structure import linear_shape
from mote_quant.formats.bits import unpack_bits
from mote_quant.formats.groups import count_groups
from mote_quant.formats.integer import BITS
from mote_quant.hf.attach import attach
from mote_quant.hf.structure import is_transposed, replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import blocks
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods.rtn import rtn
from tests import pico
from tests.mixtures import logits
from tests.sources import source_for

Tensors = dict[str, Tensor]
Stores = Callable[[PackedLinear, IntegerBits], Tensors]


def packed_model(
    family: str,
    spec: IntegerBits,
    roles: Sequence[str] = ("ffn", "attention"),
    dtype: Any = torch.float32,
    **sizes: int,
) -> PreTrainedModel:
    """A pico model whose linear layers of `roles` are packed, rounded to nearest."""
    model = pico.PICO[family](**({"hidden": 64, "ffn": 96} | sizes)).to(dtype)
    names = [p.module for p in inventory(model) if p.role in roles and p.matrix]
    for name in names:
        linear = model.get_submodule(name)
        if linear_shape(linear) is not None:
            weight = linear.weight.t() if is_transposed(linear) else linear.weight
            replace_module(model, name, PackedLinear.pack(spec, rtn(weight, spec), linear.bias, dtype))
    attach(model, finished=True)
    return model


def packed_layers(model: Any) -> dict[str, PackedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def write(model: PreTrainedModel, folder: Path, config: dict[str, Any], stores: Stores, shards: int = 1) -> Path:
    """`model` in `folder`, its packed layers as `stores` has them, its quantization_config as `config`."""
    packed, state = packed_layers(model), model.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in packed}
    for name, layer in packed.items():
        bias = {} if layer.bias is None else {"bias": layer.bias.detach()}
        tensors |= {f"{name}.{key}": tensor for key, tensor in (stores(layer, layer.spec) | bias).items()}
    if model.config.get_text_config().tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    written = copy.deepcopy(model.config)
    written.quantization_config = config
    written.dtype, written.architectures = model.dtype, [type(model).__name__]
    written.save_pretrained(folder)
    save(tensors, folder, shards)
    return folder


def save(tensors: Tensors, folder: Path, shards: int = 1) -> None:
    if shards == 1:
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
        return
    # Round robin, so that the tensors of a layer lie in several files.
    files = {name: f"model-{index % shards + 1:05d}-of-{shards:05d}.safetensors" for index, name in enumerate(tensors)}
    for file in set(files.values()):
        part = {name: tensor.contiguous().clone() for name, tensor in tensors.items() if files[name] == file}
        save_file(part, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def words(rows: Iterable[Iterable[int]], bits: int) -> Tensor:
    """One stream of bits a row, lowest first, in int32 words: [rows, words]."""
    return torch.tensor([_stream(list(row), bits) for row in rows], dtype=torch.int32)


def _stream(codes: list[int], bits: int) -> list[int]:
    number = sum(code << (bits * index) for index, code in enumerate(codes))
    count = -(-len(codes) * bits // 32)
    return [_signed(number >> (32 * index)) for index in range(count)]


def _signed(number: int) -> int:
    word = number % 2**32
    return word - 2**32 if word >= 2**31 else word


def unsigned(layer: PackedLinear, spec: IntegerBits) -> tuple[Tensor, Tensor]:
    """Codes [out, in] and zero points [out, groups], both from 0 up."""
    bits, groups = BITS[spec.format], count_groups(spec.group_size, layer.in_features)
    middle = 2 ** (bits - 1)
    if spec.symmetric:
        return layer.codes() + middle, torch.full((layer.out_features, groups), middle)
    return layer.codes(), unpack_bits(layer.weight_zero, bits, groups)


def gptq(layout: str = "gptq") -> Stores:
    def stores(layer: PackedLinear, spec: IntegerBits) -> Tensors:
        bits = BITS[spec.format]
        codes, zero = unsigned(layer, spec)
        zeros = zero.t().tolist()
        if layout == "gptq" and bits == 3:
            zeros = [[(value - 1) % 8 for value in row] for row in zeros]
        qzeros = words(zeros, bits)
        if layout == "gptq" and bits != 3:
            ones = words([[1] * layer.out_features], bits)
            qzeros = (qzeros.long() - ones).apply_(_signed).int()
        group = layer.in_features if spec.group_size == -1 else spec.group_size
        return {
            "qweight": words(codes.tolist(), bits).t(),
            "qzeros": qzeros,
            "scales": layer.weight_scale.t(),
            "g_idx": torch.tensor([column // group for column in range(layer.in_features)], dtype=torch.int32),
        }

    return stores


def gptq_config(spec: IntegerBits, **settings: Any) -> dict[str, Any]:
    grid = {"bits": BITS[spec.format], "group_size": spec.group_size, "sym": spec.symmetric}
    return {"quant_method": "gptq", "desc_act": False} | grid | settings


_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def _awq_words(rows: list[list[int]], bits: int) -> Tensor:
    """Of 4 bits, every eight outputs are turned: the one numbered `_AWQ_ORDER[i]` is the i-th from the lowest bits."""
    if bits == 4:
        rows = [[row[start + place] for start in range(0, len(row), 8) for place in _AWQ_ORDER] for row in rows]
    return words(rows, bits)


def awq(layer: PackedLinear, spec: IntegerBits) -> Tensors:
    bits, (codes, zero) = BITS[spec.format], unsigned(layer, spec)
    packed = {"qweight": _awq_words(codes.t().tolist(), bits), "qzeros": _awq_words(zero.t().tolist(), bits)}
    return packed | {"scales": layer.weight_scale.t()}


def awq_config(spec: IntegerBits, **settings: Any) -> dict[str, Any]:
    grid = {"bits": BITS[spec.format], "group_size": spec.group_size, "zero_point": not spec.symmetric}
    return {"quant_method": "awq", "version": "gemm", "modules_to_not_convert": None} | grid | settings


def compressed(layer: PackedLinear, spec: IntegerBits) -> Tensors:
    """pack-quantized."""
    bits = BITS[spec.format]
    codes, zero = unsigned(layer, spec)
    stored = {
        "weight_packed": words(codes.tolist(), bits),
        "weight_scale": layer.weight_scale,
        "weight_shape": torch.tensor([layer.out_features, layer.in_features]),
    }
    return stored if spec.symmetric else stored | {"weight_zero_point": words(zero.t().tolist(), bits).t()}


def naive(layer: PackedLinear, spec: IntegerBits) -> Tensors:
    """int-quantized and naive-quantized."""
    codes, zero = unsigned(layer, spec)
    middle = 2 ** (BITS[spec.format] - 1)
    stored = {"weight": (codes - middle).to(torch.int8), "weight_scale": layer.weight_scale}
    return stored if spec.symmetric else stored | {"weight_zero_point": (zero.short() - middle).to(torch.int8)}


def compressed_group(spec: IntegerBits, *targets: str, **settings: Any) -> dict[str, Any]:
    weights = {"num_bits": BITS[spec.format], "type": "int", "symmetric": spec.symmetric}
    weights |= (
        {"strategy": "channel"} if spec.group_size == -1 else {"strategy": "group", "group_size": spec.group_size}
    )
    return {"targets": list(targets or ["Linear"]), "weights": weights} | settings


def compressed_config(*groups: dict[str, Any], **settings: Any) -> dict[str, Any]:
    named = {f"group_{index}": group for index, group in enumerate(groups)}
    fixed = {"quant_method": "compressed-tensors", "quantization_status": "compressed", "ignore": ["lm_head"]}
    return fixed | {"format": "pack-quantized", "config_groups": named} | settings


def _compressed_settings(spec: IntegerBits, **settings: Any) -> dict[str, Any]:
    group = compressed_group(spec, **{key: value for key, value in settings.items() if key == "format"})
    return compressed_config(group, **settings)


METHODS: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any], Stores]] = {
    "gptq": (gptq_config, {}, gptq()),
    "gptq_v2": (gptq_config, {"checkpoint_format": "gptq_v2"}, gptq("gptq_v2")),
    "awq": (awq_config, {}, awq),
    "compressed-tensors": (_compressed_settings, {}, compressed),
    "int-quantized": (_compressed_settings, {"format": "int-quantized"}, naive),
}


def write_as(method: str, model: PreTrainedModel, folder: Path, **settings: Any) -> Path:
    """`model`, all of whose packed layers are alike, as one of the methods' folders."""
    spec = next(iter(packed_layers(model).values())).spec
    config, fixed, stores = METHODS[method]
    return write(model, folder, config(spec, **(fixed | settings)), stores)


MIXTURE: dict[str, Any] = {
    "name": "packed-base",
    "bits": {"routed": {"format": "ternary"}, "router": "float32"},
    "pipeline": [
        {"upcycle": {"experts": 2, "router_std": 0.3}},
        {"train": {"what": ["routed", "router"], "data": "pico", "steps": 3, "batch_size": 4, "learning_rate": 0.01}},
        "quantize",
    ],
}
"""What a recipe for a quantized base looks like: no rule for what is packed already."""

_FRESH = """
import sys, torch, mote_quant
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
for folder in Path(sys.argv[1]).iterdir():
    batch = torch.load(folder / "batch.pt")
    auto = AutoModelForImageTextToText if "pixel_values" in batch else AutoModelForCausalLM
    model = auto.from_pretrained(folder)
    with torch.no_grad():
        ids = model.generate(**batch, max_new_tokens=3, do_sample=False)
        found = {"logits": model(**batch, use_cache=False).logits, "ids": ids}
    torch.save(found, folder / "found.pt")
"""


@dataclass(frozen=True)
class Grown:
    """A base that became a mixture: its feed-forward before and after, logits and generated ids, here and fresh."""

    before: Tensors
    after: Tensors
    logits: Tensor
    ids: Tensor
    folder: Path

    def check(self) -> None:
        """Nothing of the feed-forward has changed, and a fresh process gives the same."""
        assert self.before.keys() == self.after.keys()
        assert all(torch.equal(tensor, self.after[name]) for name, tensor in self.before.items())
        fresh = torch.load(self.folder / "found.pt")
        assert torch.equal(fresh["logits"], self.logits)
        assert torch.equal(fresh["ids"], self.ids)


def grow(model: Any, folder: Path) -> Grown:
    """Carry out `MIXTURE` on `model` into `folder`; `start_fresh` on the folder above comes before `check`."""
    names = [list(block.linears.values()) for block in find_feedforwards(model)]
    before = _states([model.get_submodule(block.path) for block in find_feedforwards(model)], names)
    mote_quant.apply(MIXTURE, model, data=source_for(model), output=folder)
    after = _states([block.shared_expert for block in blocks(model).values()], names)
    batch = {key: value for key, value in pico.inputs(model).items() if key != "labels"}
    torch.save(batch, folder / "batch.pt")
    return Grown(before, after, logits(model), model.generate(**batch, max_new_tokens=3, do_sample=False), folder)


def start_fresh(folder: Path) -> None:
    """Load every model in `folder` in one new process, and keep what it gives beside it."""
    subprocess.run([sys.executable, "-c", _FRESH, str(folder)], check=True, cwd=Path(__file__).parents[1])


def _states(modules: Sequence[Any], names: list[list[str]]) -> Tensors:
    return {
        f"{index}.{name}.{key}": tensor.detach().clone()
        for index, module in enumerate(modules)
        for name in names[index]
        for key, tensor in module.get_submodule(name).state_dict().items()
    }
