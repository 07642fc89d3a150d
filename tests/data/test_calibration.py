"""What is drawn to calibrate with, and what is kept aside."""

from __future__ import annotations

import dataclasses
import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.data import open_source
from mote_quant.data.calibration import calibration_batches, count_tokens, token_mask
from mote_quant.data.opener import opener_for
from mote_quant.data.source import Source
from mote_quant.fingerprint import differences, fingerprint_of
from mote_quant.recipe import load
from tests import pico, processors
from tests.processors import PROCESSORS, album
from tests.sources import source_for


def numbers(found: int) -> Source:
    """Sample n is the token n, n % 3 + 1 times over, padded."""
    rows = [{"n": n, "length": n % 3 + 1} for n in range(found)]

    def collate(samples):
        mask = torch.tensor([[int(place < sample["length"]) for place in range(3)] for sample in samples])
        ids = torch.tensor([[sample["n"]] * 3 for sample in samples])
        return {"input_ids": ids * mask, "attention_mask": mask, "labels": ids}

    return Source("numbers", "", rows, [], [], collate, "text")


def drawn(batches):
    return [int(row[0]) for batch in batches for row in batch["input_ids"]]


@given(found=st.integers(1, 40), samples=st.integers(1, 40), size=st.integers(1, 9), seed=st.integers(0, 2**31))
def test_calibration_comes_first_in_the_seeds_order_and_what_is_held_out_follows(found, samples, size, seed):
    made = calibration_batches(numbers(found), samples, size, seed)
    order = torch.randperm(found, generator=torch.Generator().manual_seed(seed)).tolist()
    used, held = drawn(made.batches), drawn(made.held_out)
    assert used + held == order[: len(used) + len(held)]
    assert len(used) == samples if found > samples else len(used) + len(held) == found
    assert len(held) <= max(1, samples // 8)
    assert bool(held) == (found > 1)
    assert all(len(batch["input_ids"]) <= size for batch in made.batches + made.held_out)
    assert all("labels" not in batch for batch in made.batches + made.held_out)
    lengths = {n: n % 3 + 1 for n in range(found)}
    assert made.note["tokens"] == sum(lengths[n] for n in used)
    assert made.note["held_out_tokens"] == sum(lengths[n] for n in held)
    assert (made.note["samples"], made.note["held_out_samples"]) == (len(used), len(held))
    assert ("short" in made.note) == (len(used) < samples)


def test_one_in_eight_is_held_out_where_there_are_enough():
    made = calibration_batches(numbers(400), 128, 8, 0)
    assert (len(drawn(made.batches)), len(drawn(made.held_out))) == (128, 16)


def test_fewer_samples_than_asked_for_is_noted_and_logged(caplog):
    with caplog.at_level(logging.WARNING):
        made = calibration_batches(numbers(10), 128, 8, 0)
    assert made.note["short"] == "128 samples were asked for, numbers has 10: calibrated with 9 of them"
    assert caplog.messages == [made.note["short"]]


def test_padding_is_no_token():
    batch = calibration_batches(numbers(9), 8, 8, 0).batches[0]
    mask = token_mask(batch)
    assert mask.dtype == torch.bool
    assert torch.equal(mask, batch["attention_mask"] == 1)
    assert count_tokens([batch]) == int(batch["attention_mask"].sum()) < batch["input_ids"].numel()


@pytest.mark.parametrize("mask", [None, torch.ones(2, 5, dtype=torch.int64), torch.zeros(2, 1, 5, 5)])
def test_where_nothing_is_padding_there_is_no_mask(mask):
    batch = {"input_ids": torch.ones(2, 5, dtype=torch.int64)} | ({} if mask is None else {"attention_mask": mask})
    assert token_mask(batch) is None
    assert count_tokens([batch]) == 10


@pytest.mark.parametrize("family", PROCESSORS)
def test_images_are_calibrated_with(tmp_path, family):
    words = ["a cat", "two dogs", "no"]
    rows = [{"image": f"{i % 4}.png", "prompt": f"what is {i}?", "completion": words[i % 3]} for i in range(12)]
    model = pico.PICO[family]()
    source = opener_for(model, processor=PROCESSORS[family](), data=album(tmp_path, rows))("", None)
    made = calibration_batches(source, 8, 4, 0)
    for batch in made.batches + made.held_out:
        assert "pixel_values" in batch
        with torch.no_grad():
            result = model(**batch, use_cache=False).logits
        assert torch.isfinite(result[token_mask(batch)] if token_mask(batch) is not None else result).all()
    assert made.note["tokens"] == sum(int(batch["attention_mask"].sum()) for batch in made.batches)


def test_the_order_belongs_to_the_fingerprint(tmp_path):
    """The seed is what decides it, and is part of the recipe."""
    model = pico.PICO["llava"]()
    rows = [{"image": f"{i % 4}.png", "prompt": f"what is {i}?", "completion": "x"} for i in range(12)]
    path = album(tmp_path, rows)
    source = open_source(path, processor=processors.llava())
    step = {"quantize": {"calibration": {"data": path, "samples": 4}}}
    made = {
        seed: load(
            {"name": "a", "seed": seed, "bits": {"attention": {"format": "int4", "method": "gptq"}}, "pipeline": [step]}
        )
        for seed in (0, 1)
    }
    opener = opener_for(model, processor=processors.llava())
    first, second = (fingerprint_of(recipe, model, opener) for recipe in made.values())
    assert first["data"] == second["data"] == {path: source.fingerprint}
    assert differences(first, second) == ["recipe.seed was 0, is now 1"]
    orders = [drawn(calibration_batches(numbers(12), 4, 4, recipe.seed).batches) for recipe in made.values()]
    assert orders[0] != orders[1]


def test_the_same_as_ever_for_a_source_with_enough_samples():
    """Eight of 24 samples, as the quantize step has always drawn them."""
    source = source_for(pico.PICO["llama"]())
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:8]
    chosen = [source.train[int(index)] for index in order]
    expected = [source.collate(chosen[:4]), source.collate(chosen[4:])]
    made = calibration_batches(dataclasses.replace(source), 8, 4, 0).batches
    assert len(made) == 2
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(made, expected, strict=True))
