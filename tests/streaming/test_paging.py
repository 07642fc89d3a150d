"""Memory of mapped files is given back, and nothing else is."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from eval.scale.watching import memory, resident_share
from mote_quant.hf.loading import load_model
from mote_quant.streaming import paging
from mote_quant.streaming.paging import layer_by_layer, release, release_module, releasing
from tests import pico
from tests.mixtures import logits

needs_proc = pytest.mark.skipif(not paging._MAPS.exists(), reason="this system does not say what is mapped (no /proc)")
SIZE = 1 << 20


@pytest.fixture
def mapped(tmp_path):
    save_file({"a": torch.arange(SIZE, dtype=torch.int32), "b": torch.ones(SIZE)}, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        return file.get_tensor("a"), file.get_tensor("b")


@needs_proc
def test_released_pages_are_gone_until_they_are_read_again(mapped):
    a, b = mapped
    total = int(a.sum()), float(b.sum())
    assert resident_share([a]) == resident_share([b]) == 1.0
    held = memory()["mapped"]
    release([a])
    assert resident_share([a]) == 0.0
    assert resident_share([b]) == 1.0
    assert held - memory()["mapped"] > 0.9 * a.nbytes
    assert (int(a.sum()), float(b.sum())) == total


@needs_proc
def test_memory_that_is_no_map_of_a_model_file_is_never_touched(mapped, tmp_path):
    own = torch.randn(SIZE)
    before = own.clone()
    (tmp_path / "raw.bin").write_bytes(bytes(4 * SIZE))
    other = torch.from_file(str(tmp_path / "raw.bin"), shared=False, size=SIZE, dtype=torch.float32).fill_(3.0)
    shared = torch.randn(SIZE).share_memory_()
    kept = shared.clone()
    release([own, other, shared, torch.empty(0), torch.empty(4, device="meta"), own[5:9], own.t()])
    assert torch.equal(own, before)
    assert torch.equal(shared, kept)
    assert bool((other == 3.0).all())


@needs_proc
def test_only_one_tensor_at_a_time_is_held_of_those_that_are_gone_through(mapped):
    names = []
    for name, tensor in releasing({"a": mapped[0], "b": mapped[1]}.items()):
        names.append(name)
        assert float(tensor.sum()) > 0
        held = [resident_share([each]) for each in mapped]
        # The system maps a little around what it is asked for.
        assert [round(share, 1) for share in held] == ([1.0, 0.0] if name == "a" else [0.0, 1.0])
    assert names == ["a", "b"]
    assert resident_share(mapped) == 0.0


@needs_proc
def test_a_forward_pass_keeps_no_layer(tmp_path):
    pico.PICO["llama"](hidden=256, ffn=1024, layers=3).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    weights = [layer.mlp.up_proj.weight for layer in model.model.layers]
    expected = logits(model)
    assert resident_share(weights) == 1.0
    release_module(model)
    assert resident_share(weights) == 0.0
    with layer_by_layer(model):
        assert torch.equal(logits(model), expected)
        assert resident_share(weights) == 0.0
    assert torch.equal(logits(model), expected)
    assert resident_share(weights) == 1.0


def test_without_proc_nothing_is_released(mapped, monkeypatch, tmp_path):
    monkeypatch.setattr(paging, "_MAPS", tmp_path / "absent")
    total = int(mapped[0].sum())
    release(mapped)
    assert int(mapped[0].sum()) == total
