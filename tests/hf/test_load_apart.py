"""Experts loaded one by one as the files hold them: maps of those files, and the model that is loaded otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mote_quant
from mote_quant.errors import ArtifactError, UnsupportedModelError
from mote_quant.hf.fused import fused_experts
from mote_quant.hf.integrity import sha256
from mote_quant.hf.load_apart import load_apart
from mote_quant.hf.unfuse import unfuse
from mote_quant.moe.native import NativeExperts
from tests.mixtures import logits
from tests.pico_moe import PICO_MOE

MAPS = Path("/proc/self/maps")
# Stored expert by expert under our names, under others, stacked, transposed with biases, in a decoder of a VLM.
FAMILIES = ["Qwen3-MoE", "Mixtral", "DeepSeek-V3", "GraniteMoe", "GPT-OSS", "Llama 4", "Qwen3-VL-MoE"]
INT4 = {"name": "x", "bits": {"routed": {"format": "int4", "group_size": 16}}, "pipeline": ["quantize"]}


def saved(family: str, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A pico model on disk, in several files."""
    PICO_MOE[family]().to(dtype).save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def mapped(folder: Path) -> Iterator[tuple[int, int]]:
    for line in MAPS.read_text().splitlines():
        if str(folder) in line:
            low, high = line.split()[0].split("-")
            yield int(low, 16), int(high, 16)


def experts_of(model: nn.Module) -> dict[str, Tensor]:
    holders = {name: m for name, m in model.named_modules() if isinstance(m, NativeExperts)}
    return {
        f"{path}.{name}": parameter
        for path, holder in holders.items()
        for name, parameter in holder.named_parameters()
        if parameter.numel()
    }


@pytest.mark.skipif(not MAPS.exists(), reason="needs /proc")
@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_an_expert_is_a_map_of_its_file(family: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / "dense")
    model = load_apart(folder)
    ranges = list(mapped(folder))
    weights = experts_of(model)
    assert not fused_experts(model)
    assert len(weights) >= 12
    for name, tensor in weights.items():
        assert tensor.dtype == torch.bfloat16
        assert any(low <= tensor.data_ptr() < high for low, high in ranges), name
    plain = type(model).from_pretrained(folder, dtype="auto")
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-2, atol=2e-2)
    again = type(model).from_pretrained(folder, dtype="auto")
    unfuse(again, list(fused_experts(again)))
    expected = again.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["Mixtral", "GPT-OSS"])
def test_what_is_made_of_it_is_the_same_to_the_byte(family: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path / "dense")
    plain = PICO_MOE[family]()
    for name, model in (("apart", load_apart(folder)), ("plain", type(plain).from_pretrained(folder, dtype="auto"))):
        mote_quant.apply(INT4, model, output=tmp_path / name)
    assert sha256(tmp_path / "apart" / "model.safetensors") == sha256(tmp_path / "plain" / "model.safetensors")
    structures = [
        json.loads((tmp_path / name / "config.json").read_text())["quantization_config"]["structure"]
        for name in ("apart", "plain")
    ]
    assert structures[0] == structures[1]


def test_only_the_layers_that_are_asked_for(tmp_path: Path) -> None:
    folder = saved("Mixtral", tmp_path / "dense", torch.float32)
    model = load_apart(folder, ["model.layers.1.mlp.experts"])
    assert list(fused_experts(model)) == ["model.layers.0.mlp.experts"]
    torch.testing.assert_close(logits(model), logits(PICO_MOE["Mixtral"]()), rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)


def test_one_expert_of_each_class_is_run_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved("Mixtral", tmp_path / "dense")
    experts = type(PICO_MOE["Mixtral"]().model.layers[0].mlp.experts)
    monkeypatch.setattr(experts, "forward", lambda self, hidden_states, top_k_index, top_k_weights: hidden_states)
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.mlp\.experts .* off from that of plain"):
        load_apart(folder)


def test_what_is_refused(tmp_path: Path) -> None:
    folder = saved("Qwen3-MoE", tmp_path / "dense", torch.float32)
    with pytest.raises(UnsupportedModelError, match=r"model\.norm holds no fused experts"):
        load_apart(folder, ["model.norm"])
    model = load_apart(folder)
    mote_quant.apply(INT4, model, output=tmp_path / "packed")
    with pytest.raises(UnsupportedModelError, match="is quantized already"):
        load_apart(tmp_path / "packed")


def test_a_file_without_one_of_the_weights_is_named(tmp_path: Path) -> None:
    PICO_MOE["Qwen3-MoE"]().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("model.layers.0.self_attn.q_proj.weight")
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match=r"lacks model\.layers\.0\.self_attn\.q_proj\.weight"):
        load_apart(tmp_path)
