"""Dense families go the whole path: up-cycled, trained, quantized, reloaded, written with, exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from eval.families.builders import LANGUAGE, VISION, Builder, inputs, source_for
from eval.families.path import YES, Row, Rows, Stretch, walk
from mote_quant.anatomy.inventory import inventory
from mote_quant.anatomy.structure import decoder_layers
from mote_quant.export import exporter
from mote_quant.inspection import inspect
from mote_quant.moe import blocks
from mote_quant.pipeline import apply

LOADERS: Mapping[str, Any] = {"language": AutoModelForCausalLM, "vision-language": AutoModelForImageTextToText}
"""Table -> what reads a saved model."""

LAYERS: Mapping[str, list[int]] = {"Gemma 3n, layers without sparsity": [1]}
"""Families of which not all layers can be up-cycled."""

BITS = {"routed": "ternary", "shared": {"format": "int4", "group_size": 16}, "attention": "int8"}
_UPCYCLE = {"noise": 0.1, "router_std": 0.3, "combine": "zero_init", "experts": 2}
_ALONE = {"shared": "none", "experts": 2, "top_k": 2}
_TRAIN = {"train": {"what": ["routed", "router"], "data": "pico", "steps": 2, "batch_size": 2, "warmup": 0.0}}
_GPTQ = {"format": "int4", "group_size": 32, "method": "gptq"}
# What GPTQ files hold packs to whole 32-bit words.
_WHOLE = {"hidden": 32, "ffn": 64}
_CALIBRATION = {"data": "pico", "samples": 4, "batch_size": 4}
_NEW_TOKENS = 6
_ROUNDING = 1e-4


@dataclass
class Trial:
    """One family on its way: its model as the columns so far have left it, and where files go."""

    kind: str
    build: Builder
    folder: Path
    model: PreTrainedModel
    layers: str | list[int] = "all"

    @property
    def saved(self) -> Path:
        """The folder of the finished model."""
        return self.folder / "mixture"

    def load(self) -> PreTrainedModel:
        """The finished model, read by plain `from_pretrained`."""
        model: PreTrainedModel = LOADERS[self.kind].from_pretrained(self.saved)
        return model


def _row(family: str, kind: str, build: Builder, folder: Path) -> Row:
    return walk(family, kind, STRETCHES, Trial(kind, build, folder, build(), LAYERS.get(family, "all")))


def up_cycles(trial: Trial) -> str:
    """Every layer becomes a mixture; the model puts out what it did, to the bit, and so do untrained experts alone."""
    before, alone = logits(trial.model), trial.build()
    _apply(alone, {"upcycle": _ALONE | {"layers": trial.layers}}, {})
    if not torch.allclose(logits(alone), before, atol=_ROUNDING):
        return "no: its experts do not start as the dense blocks"
    _apply(trial.model, {"upcycle": _UPCYCLE | {"layers": trial.layers}}, {"routed": "ternary"})
    if not torch.equal(logits(trial.model), before):
        return "no: with combine: zero_init its outputs are not those of the dense model"
    made, layers = len(blocks(trial.model)), len(decoder_layers(trial.model))
    return YES if made == layers else f"{made} of {layers} layers"


def trains(trial: Trial) -> str:
    """Two steps: the loss is finite, latents of every layer's experts move, and nothing beside them and the router."""
    before = {name: tensor.clone() for name, tensor in trial.model.state_dict().items()}
    _apply(trial.model, _TRAIN, {"routed": "ternary"})
    moved = {name for name, tensor in trial.model.state_dict().items() if not torch.equal(tensor, before[name])}
    mixtures = blocks(trial.model)
    routed = {path for path in mixtures if any(name.startswith(f"{path}.experts.") for name in moved)}
    own = tuple(f"{path}.{part}." for path in mixtures for part in ("experts", "gate"))
    others = sorted(name for name in moved if not name.startswith(own))
    if routed != mixtures.keys() or others:
        return f"no: moved were {', '.join(others) or 'not the experts of every layer'}"
    return YES if trial.model(**inputs(trial.model)).loss.isfinite() else "no: the loss is not finite"


def quantizes(trial: Trial) -> str:
    """Attention int8, shared experts int4, routed ones packed; the files weigh what was planned."""
    _apply(trial.model, {"quantize": {}}, BITS, trial.saved)
    weighed = inspect(trial.saved)["stored_bytes"]
    report = json.loads((trial.saved / "run" / "report.json").read_text())
    return YES if weighed == report["bytes"]["stored"] else f"no: {weighed} bytes stored, {report['bytes']} planned"


def reloads(trial: Trial) -> str:
    """Plain `from_pretrained` makes the same class, mixtures and logits, up to rounding."""
    loaded = trial.load()
    layouts = [[block.layout for block in blocks(model).values()] for model in (trial.model, loaded)]
    if type(loaded) is not type(trial.model) or layouts[0] != layouts[1]:
        return f"no: it is a {type(loaded).__name__} with {len(layouts[1])} mixtures"
    off = float((logits(loaded) - logits(trial.model)).abs().max())
    return YES if off <= _ROUNDING else "no: its logits are others"


def generates(trial: Trial) -> str:
    """Greedy decoding with a cache writes what it writes without."""
    return writes_alike(trial.load())


def writes_alike(model: PreTrainedModel) -> str:
    """Whether greedy decoding writes the same with a cache and without."""
    given = inputs(model, batch=1)
    del given["labels"]
    with_cache, without = (
        model.generate(**given, max_new_tokens=_NEW_TOKENS, do_sample=False, use_cache=cached)
        for cached in (True, False)
    )
    return YES if torch.equal(with_cache, without) else "no: with a cache it writes something else"


def exports(trial: Trial) -> str:
    """The dense model, quantized by GPTQ, is written as a GPTQ checkpoint, which is read back and compared."""
    model = trial.build(**_WHOLE)
    held = {parameter.role for parameter in inventory(model)}
    bits = {role: _GPTQ for role in ("ffn", "attention") if role in held}
    _apply(model, {"quantize": {"calibration": _CALIBRATION}}, bits)
    exporter("gptq")(model, trial.folder / "gptq")
    return YES


STRETCHES: Mapping[str, Stretch] = {
    "up-cycles": Stretch(up_cycles),
    "trains": Stretch(trains, needs=("up-cycles",)),
    "quantizes": Stretch(quantizes, needs=("trains",)),
    "reloads": Stretch(reloads, needs=("quantizes",)),
    "generates": Stretch(generates, needs=("reloads",)),
    "exports": Stretch(exports),
}


_KINDS: Mapping[str, Mapping[str, Builder]] = {"language": LANGUAGE, "vision-language": VISION}

TABLES: Mapping[str, Rows] = {
    kind: {family: partial(_row, family, kind, build) for family, build in builders.items()}
    for kind, builders in _KINDS.items()
}
"""The dense families, kind by kind."""


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """Logits of the family's own batch, with images for a model that sees."""
    model.train(False)
    given = inputs(model)
    del given["labels"]
    return cast(Tensor, model(**given, use_cache=False).logits)


def _apply(model: PreTrainedModel, step: dict[str, Any], bits: dict[str, Any], output: Path | None = None) -> None:
    recipe = {"name": "family", "bits": bits, "pipeline": [step]}
    apply(recipe, model, data=source_for(model), output=output)
