"""A quantized model is as small in memory as in its file, and stays so while it runs."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

import mote_quant
from mote_quant.formats.integer import IntegerFormat
from mote_quant.formats.scaled import ScaledFormat
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


def test_it_runs_with_one_dense_weight_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantized(tmp_path)
    alive: list[weakref.ref[torch.Tensor]] = []
    for kind in (IntegerFormat, ScaledFormat):
        original = kind.decompress

        def decompress(self, *args, _original=original):
            assert not any(reference() is not None for reference in alive)
            dense = _original(self, *args)
            alive.append(weakref.ref(dense))
            return dense

        monkeypatch.setattr(kind, "decompress", decompress)
    with torch.no_grad():
        model(**pico.inputs(model), use_cache=False)
    packed = sum(isinstance(module, PackedLinear) for module in model.modules())
    assert packed / 2 < len(alive) <= packed  # experts that no token chose were not called
