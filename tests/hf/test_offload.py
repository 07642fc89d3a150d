"""Weights that lie elsewhere until they are wanted: device maps, disk and CPU offload by accelerate's hooks."""

from __future__ import annotations

import copy

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from mote_quant.kernels.packed_linear import PackedLinear
from tests.mixtures import logits, reloaded
from tests.rounding import assert_same_to_rounding

ENDS = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
HALF = ENDS | {"model.layers.0": "cpu", "model.layers.1": "disk"}

pytestmark = pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules")


@pytest.fixture(scope="module")
def model(packed):
    return AutoModelForCausalLM.from_pretrained(packed)


@pytest.fixture(scope="module")
def wanted(model):
    return logits(model)


def resident(model) -> int:
    return sum(t.nbytes for t in [*model.parameters(), *model.buffers()] if not t.is_meta)


def kept_by_layers(model) -> int:
    return sum(len(module._kept) for module in model.modules() if isinstance(module, PackedLinear))


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
def test_a_map_to_one_device_is_a_plain_load(device_map, packed, wanted):
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(packed, device_map=device_map)), wanted)


@pytest.mark.parametrize("buffers", [False, True])
def test_half_of_it_on_disk(buffers, packed, model, wanted, tmp_path):
    settings = {"device_map": dict(HALF), "offload_folder": tmp_path / "aside", "offload_buffers": buffers}
    loaded = AutoModelForCausalLM.from_pretrained(packed, **settings)
    held = resident(loaded)
    assert held < resident(model)
    assert_same_to_rounding(logits(loaded), wanted)
    prompt = torch.tensor([[11, 12, 13]])
    settings = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(loaded.generate(prompt, **settings), model.generate(prompt, **settings))
    assert resident(loaded) == held
    assert torch.equal(logits(reloaded(loaded, tmp_path / "saved")), wanted)


def test_all_of_it_on_disk_and_nothing_stays_behind(model, wanted, tmp_path):
    away = disk_offload(copy.deepcopy(model), tmp_path, torch.device("cpu"), offload_buffers=True)
    assert_same_to_rounding(logits(away), wanted)
    assert resident(away) < 100  # the tables of rotary positions
    assert kept_by_layers(away) == 0


@pytest.mark.parametrize("buffers", [False, True])
def test_a_live_model_is_dispatched(buffers, model, wanted, tmp_path):
    settings = {"offload_dir": tmp_path, "main_device": "cpu", "offload_buffers": buffers}
    assert_same_to_rounding(logits(dispatch_model(copy.deepcopy(model), dict(HALF), **settings)), wanted)
    assert_same_to_rounding(logits(cpu_offload(copy.deepcopy(model), "cpu", offload_buffers=buffers)), wanted)


def test_room_for_a_part_only(packed, wanted, tmp_path):
    settings = {"device_map": "auto", "offload_folder": tmp_path, "offload_buffers": True}
    loaded = AutoModelForCausalLM.from_pretrained(packed, max_memory={"cpu": 40_000}, **settings)
    assert {"cpu", "disk"} == set(loaded.hf_device_map.values())
    assert resident(loaded) <= 40_000
    assert_same_to_rounding(logits(loaded), wanted)


def test_latents_on_disk_are_rounded_as_at_hand(latent, tmp_path):
    at_hand = logits(AutoModelForCausalLM.from_pretrained(latent))
    away = AutoModelForCausalLM.from_pretrained(latent, device_map=dict(HALF), offload_folder=tmp_path)
    assert_same_to_rounding(logits(away), at_hand)


def test_the_language_model_of_a_vlm_on_disk(packed_vlm, tmp_path):
    at_hand = logits(AutoModelForImageTextToText.from_pretrained(packed_vlm))
    parts = {"model.vision_tower": "cpu", "model.multi_modal_projector": "cpu", "lm_head": "cpu"}
    settings = {"device_map": parts | {"model.language_model": "disk"}, "offload_folder": tmp_path}
    away = AutoModelForImageTextToText.from_pretrained(packed_vlm, offload_buffers=True, **settings)
    assert_same_to_rounding(logits(away), at_hand)
