from __future__ import annotations

import pytest
import torch

from mote_quant.errors import RequestError
from mote_quant.hf.skeleton import skeleton_of
from mote_quant.memory import facts
from mote_quant.memory.cache import cache_bytes

# Parameter counts as published with the models.
COUNTS = {
    "Qwen2.5-0.5B": 494_032_768,
    "Qwen2.5-1.5B": 1_543_714_304,
    "Qwen2.5-3B": 3_085_938_688,
    "Qwen2.5-7B": 7_615_616_512,
    "Qwen2.5-VL-3B": 3_754_622_976,
    "Qwen3-0.6B": 596_049_920,
    "Qwen3-1.7B": 1_720_574_976,
    "Qwen3-4B": 4_022_468_096,
    "Llama-3.2-1B": 1_235_814_400,
    "Llama-3.2-3B": 3_212_749_824,
    "gemma-3-1b": 999_885_952,
    "SmolVLM": 2_246_272_880,
    "SmolVLM-500M": 507_482_304,
    "SmolVLM-256M": 256_484_928,
}
QWEN = [name for name in COUNTS if name.startswith("Qwen2.5") and "VL" not in name]


def test_the_known_models() -> None:
    assert facts.names() == sorted([*COUNTS, "llava-qwen2.5-1.5b"])


@pytest.mark.parametrize("name", COUNTS)
def test_a_model_of_these_facts_has_the_published_size(name: str) -> None:
    model = skeleton_of(facts.load(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", QWEN)
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


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("qwen2.5-3b", "Qwen2.5-3B"),
        ("Qwen/Qwen2.5-3B-Instruct", "Qwen2.5-3B"),
        ("google/gemma-3-1b-it", "gemma-3-1b"),
        ("google/gemma-3-1b-pt", "gemma-3-1b"),
        ("HuggingFaceTB/SmolVLM-Instruct", "SmolVLM"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen2.5-VL-3B"),
        ("Qwen2.5-3B-GGUF", None),
        ("Qwen2.5-4B", None),
    ],
)
def test_owner_letter_case_and_variant_do_not_matter(name: str, kept: str | None) -> None:
    assert facts.known(name) == kept


@pytest.mark.parametrize(
    ("name", "cache"),
    [
        # 2 x layers x heads x size x 2 bytes a token, by hand.
        ("Llama-3.2-1B", 16 * 8 * 64 * 4),
        ("Qwen3-4B", 36 * 8 * 128 * 4),
        ("SmolVLM", 24 * 32 * 64 * 4),
        ("gemma-3-1b", 26 * 1 * 256 * 4),
        ("Qwen2.5-VL-3B", 36 * 2 * 128 * 4),
    ],
)
def test_attention_has_its_heads(name: str, cache: int) -> None:
    assert cache_bytes(facts.load(name), context=1) == cache


def test_gemma_keeps_no_more_than_its_window_in_all_but_every_sixth_layer() -> None:
    assert cache_bytes(facts.load("gemma-3-1b"), context=4096) == (22 * 512 + 4 * 4096) * 256 * 4


def test_positions_are_rotated_as_published() -> None:
    llama, gemma = facts.load("Llama-3.2-1B"), facts.load("gemma-3-1b")
    assert llama.rope_parameters["rope_type"] == "llama3"
    assert (llama.rope_parameters["factor"], llama.rope_parameters["rope_theta"]) == (32.0, 5e5)
    assert gemma.rope_parameters["full_attention"]["rope_theta"] == 1e6
    assert gemma.rope_parameters["sliding_attention"]["rope_theta"] == 1e4
    assert facts.load("Qwen2.5-VL-3B").get_text_config().rope_parameters["mrope_section"] == [16, 24, 24]


def test_an_unknown_model_is_named_with_near_misses() -> None:
    with pytest.raises(RequestError, match=r"Qwen2\.5-4B; did you mean .*Qwen2\.5-3B"):
        facts.load("Qwen2.5-4B")
    with pytest.raises(RequestError, match=r"as zzz\. Give a folder or .*; known by name are Llama-3\.2-1B"):
        facts.load("zzz")
