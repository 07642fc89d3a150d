"""A quantized model is as small in memory as in its file, and stays so while it runs."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

import mote_quant
from mote_quant.formats.integer import IntegerFormat
from mote_quant.formats.scaled import ScaledFormat
from mote_quant.kernels import table
from mote_quant.kernels.cpu import library
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.memory.ledger import weigh
from tests import pico
from tests.mixtures import recipe
from tests.sources import source_for

BITS = {
    "routed": "ternary",
    "shared": {"format": "int4", "group_size": 32, "method": "gptq"},
    "attention": {"format": "int8", "method": "awq"},
    "head": {"format": "int3", "method": "hqq", "symmetric": False, "group_size": 64},
}


def quantized(folder: Path):
    model = pico.PICO["llama"](hidden=128, ffn=256)
    made = recipe(BITS, train={})
    return mote_quant.apply(made, model, data=source_for(model), output=folder)


@pytest.mark.parametrize("again", [False, True])
def test_it_is_no_larger_in_memory_than_its_file(again: bool, tmp_path: Path) -> None:
    model = quantized(tmp_path)
    model = type(model).from_pretrained(tmp_path) if again else model
    on_disk = sum(path.stat().st_size for path in tmp_path.glob("*.safetensors"))
    held = sum(t.nbytes for t in {id(t): t for t in [*model.parameters(), *model.buffers()]}.values())
    assert held == weigh(model).resident_bytes
    assert held <= 1.05 * on_disk


@pytest.fixture
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[torch.Tensor]]:
    """Every dense weight that was made; making one while another is alive fails."""
    alive: list[weakref.ref[torch.Tensor]] = []
    for kind in (IntegerFormat, ScaledFormat):
        original = kind.decompress

        def decompress(self, *args, _original=original):
            assert not any(reference() is not None for reference in alive)
            dense = _original(self, *args)
            alive.append(weakref.ref(dense))
            return dense

        monkeypatch.setattr(kind, "decompress", decompress)
    return alive


def run(model) -> None:
    """A few tokens: of many, some rows at a time are unpacked for torch to multiply."""
    with torch.no_grad():
        model(**pico.inputs(model, batch=1, length=6), use_cache=False)


def test_the_reference_unpacks_one_weight_at_a_time(tmp_path: Path, unpacked, monkeypatch) -> None:
    model = quantized(tmp_path)
    unpacked.clear()
    monkeypatch.setattr(table, "OPS", {op: choices[-1:] for op, choices in table.OPS.items()})
    run(model)
    packed = sum(isinstance(module, PackedLinear) for module in model.modules())
    assert packed / 2 < len(unpacked) <= packed  # experts that no token chose were not called


@pytest.mark.skipif(library.library() is None, reason=f"no CPU kernels: {library.why_not()}")
def test_the_kernels_unpack_nothing(tmp_path: Path, unpacked) -> None:
    model = quantized(tmp_path)
    unpacked.clear()
    before = library.calls()
    run(model)
    after = library.calls()
    assert unpacked == []
    layers = len(model.model.layers)
    assert after["ternary_experts"] - before["ternary_experts"] == layers
    assert after["int_matmul"] - before["int_matmul"] == 7 * layers + 1  # shared expert, attention, head
