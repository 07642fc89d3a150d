"""Mixtures made of pico models, for tests: recipes as mappings, single steps of the pipeline, whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from mote_quant.data.source import Source
from mote_quant.moe import MoteBlock, blocks
from mote_quant.planning import plan
from mote_quant.recipe import Recipe, load
from mote_quant.recipe.schema import Quantize, Upcycle
from mote_quant.steps import Context, quantize, train, upcycle
from tests import pico
from tests.sources import source_for

TERNARY: dict[str, Any] = {"routed": {"format": "ternary"}}
INT4_SHARED: dict[str, Any] = {"shared": {"format": "int4", "group_size": 16}}
CALIBRATION: dict[str, Any] = {"calibration": {"data": "pico", "samples": 8, "batch_size": 4}}
TRAIN: dict[str, Any] = {"what": ["routed", "router"], "data": "pico", "steps": 2, "batch_size": 4}


def recipe(bits: dict[str, Any] | None = None, train: dict[str, Any] | None = None, **upcycle: Any) -> Recipe:
    """upcycle, then `train` if given, then quantize if there are `bits`."""
    copies: dict[str, Any] = {} if "lora_rank" in upcycle else {"noise": 0.3}
    steps: list[Any] = [{"upcycle": copies | {"router_std": 0.3} | upcycle}]
    steps += [{"train": TRAIN | train}] if train is not None else []
    steps += [{"quantize": CALIBRATION if "gptq" in str(bits) else {}}] if bits else []
    return load({"name": "pico", "bits": bits or {}, "pipeline": steps})


def context_for(made: Recipe, model: nn.Module, source: Source | None = None) -> Context:
    """What the steps of `made` need to run on `model` (still dense)."""
    planned = plan(made, model)
    data = source or source_for(model)
    return Context(made.seed, planned.layouts, planned.formats, lambda name, length: data)


def upcycled(model: PreTrainedModel, bits: dict[str, Any] | None = None, **settings: Any) -> Context:
    """Up-cycle `model` in place; the context can be given to `train_it` and `quantize_it`."""
    made = recipe(bits, **settings)
    context = context_for(made, model)
    upcycle.run(model, step(made, Upcycle), context)
    return context


def train_it(model: nn.Module, context: Context, **settings: Any) -> nn.Module:
    """A train step."""
    made = recipe(train=settings)
    return train.run(model, made.pipeline[1].config, context)


def quantize_it(model: nn.Module, context: Context, **settings: Any) -> nn.Module:
    """The quantize step."""
    return quantize.run(model, Quantize(**settings), context)


def step(made: Recipe, kind: type) -> Any:
    """The settings of the first step of a kind."""
    return next(s.config for s in made.pipeline if isinstance(s.config, kind))


def mixture(bits: dict[str, Any] | None = None, family: str = "llama", **settings: Any) -> PreTrainedModel:
    """An up-cycled pico model; `hidden`, `ffn` and `layers` go to the dense model, the rest to the upcycle step."""
    sizes = {key: settings.pop(key) for key in ("hidden", "ffn", "layers") if key in settings}
    model = pico.PICO[family](**sizes)
    upcycled(model, bits, **settings)
    return model


def one_block(bits: dict[str, Any] | None = None, **settings: Any) -> MoteBlock:
    """The first mixture layer of a one-layer pico Llama."""
    return next(iter(blocks(mixture(bits, layers=1, **settings)).values()))


@torch.no_grad()
def logits(model: PreTrainedModel, **batch: Any) -> Tensor:
    """Logits of the family's own batch (with images for a VLM)."""
    model.train(False)
    given = pico.inputs(model, **batch)
    given.pop("labels")
    return model(**given, use_cache=False).logits


def bits_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A copy of a state dict."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Whether two state dicts hold the same, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the weight files of `folder`."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def reloaded(model: PreTrainedModel, folder: Path, **options: Any) -> PreTrainedModel:
    """Save and load again."""
    model.save_pretrained(folder, **options)
    return type(model).from_pretrained(folder)
