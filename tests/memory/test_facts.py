from __future__ import annotations

import pytest
import torch

from mote_quant.errors import RequestError
from mote_quant.hf.skeleton import skeleton_of
from mote_quant.memory import facts

# Parameter counts as published with the models.
COUNTS = {
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
}


def test_the_known_models() -> None:
    assert facts.names() == sorted([*COUNTS, "llava-qwen2.5-1.5b"])


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_of_these_facts_has_the_published_size(name: str) -> None:
    model = skeleton_of(facts.load(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", COUNTS)
def test_the_values_beside_the_sizes(name: str) -> None:
    config = facts.load(name)
    assert config.max_position_embeddings == 32768
    assert config.rope_parameters["rope_theta"] == 1e6
    assert config.tie_word_embeddings is (name != "Qwen2.5-7B")


def test_llava_is_the_language_model_with_eyes() -> None:
    config = facts.load("llava-qwen2.5-1.5b")
    text = config.get_text_config()
    assert type(config).__name__ == "LlavaConfig"
    assert {
        k: v for k, v in text.to_dict().items() if k in ("hidden_size", "intermediate_size", "num_hidden_layers")
    } == {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
    }
    # CLIP ViT-L/14-336 without its projection, and two projector layers, beside the 1.5B.
    vision, projector = 303_507_456, (1024 + 1) * 1536 + (1536 + 1) * 1536
    model = skeleton_of(config)
    assert sum(p.numel() for p in model.parameters()) == COUNTS["Qwen2.5-1.5B"] + vision + projector


@pytest.mark.parametrize("name", ["qwen2.5-3b", "Qwen/Qwen2.5-3B"])
def test_owner_and_letter_case_do_not_matter(name: str) -> None:
    assert facts.load(name).num_hidden_layers == 36


def test_an_unknown_model_is_named_with_near_misses() -> None:
    with pytest.raises(RequestError, match=r"Qwen2\.5-4B; did you mean .*Qwen2\.5-3B"):
        facts.load("Qwen2.5-4B")
    with pytest.raises(RequestError, match=r"as zzz\. Give a folder or .*; known by name are Qwen2\.5-0\.5B"):
        facts.load("zzz")
