"""What the tests of every backend need: a weight with its inputs, and a process in which the library is missing."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mote_quant
from mote_quant.formats import Codes, format_for
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.recipe import load
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps import Context
from mote_quant.steps.quantize.methods import HessianSum, Seen
from tests import pico
from tests.mixtures import CALIBRATION, context_for, logits
from tests.sources import source_for

ROOT = Path(__file__).parents[2]
EVERY_GRID = list(product(("int8", "int6", "int5", "int4", "int3", "int2"), (-1, 32), (True, False)))
"""Format, group size, symmetric: all a backend has, with groups that its own packing can take."""
ROWS, COLUMNS = 32, 128

WITHOUT = """
import sys
for name in sys.argv[3].split(","):
    sys.modules[name] = None  # to import it now fails as if it were not installed
import torch, mote_quant, transformers
model = getattr(transformers, sys.argv[2]).from_pretrained(sys.argv[1] + "/model").eval()
batch = torch.load(sys.argv[1] + "/batch.pt", weights_only=True)
with torch.no_grad():
    torch.save(model(**batch, use_cache=False).logits, sys.argv[1] + "/logits.pt")
"""

LEAKS = """
import logging, os, sys, warnings
import torch, transformers
from tests.backends.beside import problem, seen
from tests.backends.test_{0} import spec_of
from mote_quant.steps.quantize.backends import BACKENDS
before = dict(os.environ), logging.getLogger().level, list(logging.getLogger().handlers), list(warnings.filters)
weight, inputs = problem()
BACKENDS["{0}", "gptq"](weight, spec_of("int4", 32, True), seen(inputs))
after = dict(os.environ), logging.getLogger().level, list(logging.getLogger().handlers), list(warnings.filters)
assert "{0}" in sys.modules
assert before == after, [(a, b) for a, b in zip(before, after) if a != b]
"""


def needs(library: str, extra: str) -> None:
    """Skip the calling file where the library is not installed; one that is there but broken fails the tests."""
    if find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install 'mote-quant[{extra}]'", allow_module_level=True)


def problem(rows: int = ROWS, columns: int = COLUMNS, tokens: int = 512) -> tuple[Tensor, Tensor]:
    """A weight [rows, columns] and correlated inputs [tokens, columns]."""
    generator = torch.Generator().manual_seed(rows + columns)
    mixing = torch.randn(columns, columns, generator=generator)
    weight = torch.randn(rows, columns, generator=generator) * 0.1
    return weight, torch.randn(tokens, columns, generator=generator) @ mixing


def seen(inputs: Tensor) -> Seen:
    """What calibration hands to a method after these inputs."""
    total = HessianSum(inputs.shape[1])
    total.add(inputs)
    return Seen(total.tokens, total.value())


def dense(codes: Codes, spec: IntegerBits) -> Tensor:
    """The weight that is stored."""
    form = format_for(spec)
    return form.decompress(form.compress(codes), (codes.codes.shape[0], codes.codes.shape[1]), torch.float32)


def agreement(ours: Codes, theirs: Codes) -> float:
    """The share of equal codes."""
    return float((ours.codes == theirs.codes).float().mean())


def still_dense(model: Any, bits: dict[str, Any]) -> Context:
    """What the quantize step needs to know of a model that is not up-cycled."""
    return context_for(load({"name": "dense", "bits": bits, "pipeline": [{"quantize": CALIBRATION}]}), model)


def applied(recipe: Any, family: str, tmp_path: Path, **sizes: int) -> tuple[Any, dict[str, PackedLinear]]:
    """A pico model after a recipe, saved under `tmp_path`/model; and its modules packed as integers."""
    model = pico.PICO[family](**sizes)
    mote_quant.apply(recipe, model, data=source_for(model), output=tmp_path / "model")
    packed = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, PackedLinear) and isinstance(module.spec, IntegerBits)
    }
    return model, packed


def check_reloads_without(library: str, model: Any, tmp_path: Path) -> None:
    """A fresh process that cannot import the library computes the same logits from what was saved."""
    batch = {name: value for name, value in pico.inputs(model).items() if name != "labels"}
    torch.save(batch, tmp_path / "batch.pt")
    command = [sys.executable, "-c", WITHOUT, str(tmp_path), type(model).__name__, library]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), logits(model), rtol=1e-4, atol=1e-4)
