"""Every way to `generate`: on a packed model each writes what plain greedy decoding writes, or a seed reproduces it."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, TextStreamer

from tests import pico

NEW = 8
PROMPT = torch.tensor([[11, 12, 13, 14, 15]])


@pytest.fixture(scope="module")
def model(packed):
    return AutoModelForCausalLM.from_pretrained(packed)


@pytest.fixture(scope="module")
def dense():
    return pico.PICO["llama"]()


def write(model, prompt=PROMPT, **settings) -> list[list[int]]:
    chosen = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW} | settings
    return model.generate(prompt, **chosen).tolist()


@pytest.fixture(scope="module")
def greedy(model):
    return write(model)


SAME_TOKENS = {
    "without a cache": {"use_cache": False},
    "static cache": {"cache_implementation": "static"},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "one beam": {"num_beams": 1},
}


@pytest.mark.parametrize("way", SAME_TOKENS)
def test_ways_that_change_no_token(way, model, greedy):
    assert write(model, **SAME_TOKENS[way]) == greedy
    assert len(greedy[0]) == PROMPT.shape[1] + NEW


def test_beams_with_and_without_a_cache(model):
    found = write(model, num_beams=3, num_return_sequences=3)
    assert found == write(model, num_beams=3, num_return_sequences=3, use_cache=False)
    assert found == write(model, num_beams=3, num_return_sequences=3, cache_implementation="static")
    assert len({tuple(tokens) for tokens in found}) == 3


def test_sampling_under_a_seed(model):
    def sample(seed: int, **settings):
        torch.manual_seed(seed)
        return write(model, do_sample=True, temperature=1.5, **settings)

    assert sample(3) == sample(3) != sample(4)
    assert len({tuple(tokens) for tokens in sample(3, num_return_sequences=4)}) > 1


def test_assistants_change_no_token_whoever_assists(model, dense, greedy):
    assert write(model, assistant_model=dense) == greedy
    assert write(model, assistant_model=model) == greedy
    assert write(dense, assistant_model=model) == write(dense)


def test_a_padded_batch_is_its_prompts_one_by_one(model):
    short = torch.tensor([[21, 22, 23]])
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.long), short], dim=1)
    both = torch.cat([PROMPT, padded])
    for cache in ("dynamic", "static"):
        first, second = write(model, both, attention_mask=(both != 0).long(), cache_implementation=cache)
        assert first == write(model)[0]
        assert second[2:] == write(model, short)[0]


def test_streaming_says_it_all(packed, model, greedy, capsys):
    tokenizer = AutoTokenizer.from_pretrained(packed)
    assert write(model, streamer=TextStreamer(tokenizer)) == greedy
    assert capsys.readouterr().out.strip() == tokenizer.decode(greedy[0]).strip()


def test_a_vlm_looks_at_its_picture_in_all_of_them(packed_vlm):
    model = AutoModelForImageTextToText.from_pretrained(packed_vlm)
    given = pico.inputs(model, batch=2)
    given.pop("labels")

    def tell(**settings):
        return model.generate(**(given | settings), max_new_tokens=6, min_new_tokens=6, do_sample=False).tolist()

    told = tell()
    assert tell(use_cache=False) == tell(cache_implementation="static") == told
    assert tell(num_beams=2) == tell(num_beams=2, use_cache=False)
    assert tell(pixel_values=-3 * given["pixel_values"]) != told
