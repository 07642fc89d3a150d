"""Families that come with experts: those are quantized, allocated or trained where they stand, and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from eval.families.builders import Builder, source_for
from eval.families.builders.experts import EXPERTS, REFUSED
from eval.families.dense import logits, writes_alike
from eval.families.path import YES, Row, Rows, Stretch, walk
from mote_quant.anatomy.inventory import inventory
from mote_quant.hf.fused import fused_experts
from mote_quant.inspection import inspect
from mote_quant.moe.native import NativeExperts
from mote_quant.pipeline import apply

KIND = "experts"
_INT4 = {"format": "int4", "group_size": 16}
_AUTO = {"format": "auto", "choices": ["int2", "int3", "int4"], "average_bits": 2.75, "group_size": 16}
_QUANTIZE = {"quantize": {"calibration": {"data": "pico", "samples": 4, "batch_size": 4}}}
_TRAIN = {"train": {"what": ["routed"], "data": "pico", "steps": 2, "batch_size": 2, "warmup": 0.0}}
_ROUNDING = 1e-4


@dataclass
class Trial:
    """One family on its way: models made of it so far, by the column that made them, and where files go."""

    build: Builder
    folder: Path
    made: dict[str, PreTrainedModel]

    def load(self, column: str) -> PreTrainedModel:
        """A finished model, read by plain `from_pretrained`."""
        model: PreTrainedModel = type(self.made[column]).from_pretrained(self.folder / column)
        return model

    def apply(self, column: str, bits: dict[str, Any], *steps: dict[str, Any]) -> dict[str, Any]:
        """A recipe for a fresh model, which `column` is from now on; its report."""
        model = self.made[column] = self.build()
        recipe = {"name": "family", "bits": bits, "pipeline": list(steps)}
        apply(recipe, model, data=source_for(model), output=self.folder / column)
        report: dict[str, Any] = json.loads((self.folder / column / "run" / "report.json").read_text())
        return report


def quantizes(trial: Trial) -> str:
    """Routed experts int4, and shared ones where there are any; all else is as it was, and the files weigh that."""
    model = trial.build()
    held = {parameter.role for parameter in inventory(model)}
    report = trial.apply("quantizes", {role: _INT4 for role in ("routed", "shared") if role in held}, _QUANTIZE)
    weighed = inspect(trial.folder / "quantizes")["stored_bytes"]
    if weighed != report["bytes"]["stored"]:
        return f"no: {weighed} bytes stored, {report['bytes']['stored']} reported"
    return _kept_but(trial, "quantizes", ("routed", "shared"))


def allocates(trial: Trial) -> str:
    """`bits: auto` gives every linear layer of the experts a format of its own, within the budget."""
    report = trial.apply("allocates", {"routed": _AUTO}, _QUANTIZE)
    tables = report["steps"][0]["allocation"]
    if len({row["format"] for row in tables["units"]}) < 2 or not tables["mixes"][0]["within_budget"]:
        return "no: it gives all of them the same, or more than there is"
    return _kept_but(trial, "allocates", ("routed",))


def trains(trial: Trial) -> str:
    """Experts are trained to ternary where they stand and packed; all else is as it was, the router too."""
    report = trial.apply("trains", {"routed": "ternary"}, _TRAIN, {"quantize": {}})
    if report["steps"][0]["trained"].keys() != {"routed"}:
        return f"no: trained were {', '.join(report['steps'][0]['trained'])}"
    layers = len(fused_experts(trial.build()))
    apart = sum(isinstance(module, NativeExperts) for module in trial.made["trains"].modules())
    if apart != layers:
        return f"{apart} of {layers} layers"
    return _kept_but(trial, "trains", ("routed",))


def reloads(trial: Trial) -> str:
    """Plain `from_pretrained` gives each of them with the same logits, up to rounding."""
    for column, model in trial.made.items():
        loaded = trial.load(column)
        if float((logits(loaded) - logits(model)).abs().max()) > _ROUNDING:
            return f"no: the logits of what {column} are others"
    return YES


def generates(trial: Trial) -> str:
    """Greedy decoding by the ternary model with a cache writes what it writes without."""
    return writes_alike(trial.load("trains"))


def _kept_but(trial: Trial, column: str, changed: tuple[str, ...]) -> str:
    """YES if all but the roles `changed` is what it was, to the bit."""
    dense, model = trial.build(), trial.made[column]
    kept = [parameter.name for parameter in inventory(dense) if parameter.role not in changed]
    before, after = dense.state_dict(), model.state_dict()
    moved = [name for name in kept if not torch.equal(before[name], after[name])]
    return f"no: moved were {', '.join(moved)}" if moved else YES


STRETCHES: Mapping[str, Stretch] = {
    "quantizes": Stretch(quantizes),
    "allocates": Stretch(allocates),
    "trains": Stretch(trains),
    "reloads": Stretch(reloads, needs=("quantizes", "allocates", "trains")),
    "generates": Stretch(generates, needs=("reloads",)),
}

NOTE = """\
Their experts are quantized, allocated or trained where they stand; up-cycling them is refused. Here `yes` means:

- **quantizes**: routed and shared experts in int4; all else is as it was, to the bit, and the files weigh what was
  planned.
- **allocates**: `bits: auto` gives every linear layer of the routed experts its own integer, within the budget.
- **trains**: the routed experts become ternary by training in place, are packed and saved; router, shared experts and
  all else are as they were, to the bit.
- **reloads**: plain `from_pretrained` gives the logits of all three.
- **generates**: the ternary model writes the same with a cache and without.
"""


def _row(family: str, build: Builder, folder: Path) -> Row:
    return walk(family, KIND, STRETCHES, Trial(build, folder, {}))


_EVERY = {**EXPERTS, **REFUSED}
TABLES: Mapping[str, Rows] = {KIND: {family: partial(_row, family, build) for family, build in _EVERY.items()}}
"""The families with experts."""
