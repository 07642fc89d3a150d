"""Several samples in a row: filled well, and none of them sees another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.families.builders import LANGUAGE
from mote_quant.data.arranging import packed, tokens_in
from mote_quant.data.packing import PackedRows, fit, form_for
from mote_quant.data.source import IGNORED
from mote_quant.data.text import collate_answers_text
from mote_quant.errors import DataError
from tests import pico
from tests.mixtures import mixture

ROOM = 40
BY_MASK = {"Falcon", "MPT", "OPT", "XGLM", "BioGPT"}
REFUSED = {"BLOOM", "LFM2", "Falcon-H1", "Bamba", "RecurrentGemma", "Qwen3.5", "OLMo hybrid", "Zamba2", "Mamba"}
DECODERS = ["llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "phi", "gpt2", "opt"]


def words(length, seed):
    return torch.randint(10, pico.VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def sample(length, seed):
    """A question of two tokens and its answer."""
    ids = words(length, seed)
    return {"input_ids": ids, "labels": [IGNORED, IGNORED, *ids[2:]]}


def collate(samples):
    return collate_answers_text(samples, pad=0)


ROWS = [[sample(13, 0), sample(3, 1), sample(20, 2)], [sample(11, 3), sample(9, 4)]]


def learned(model, batches):
    """The summed loss of batches, and the gradients."""
    model.zero_grad()
    total = 0.0
    for batch in batches:
        labels = int((batch["labels"][:, 1:] != IGNORED).sum())
        loss = model(**batch, use_cache=False).loss * labels
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_packed_is_alone(model):
    form = form_for(model, words(50, 9), ROOM)
    together, gradients = learned(model, [PackedRows(collate, form)(ROWS)])
    alone, right = learned(model, [collate([sample]) for row in ROWS for sample in row])
    assert together == pytest.approx(alone, rel=1e-5)
    assert gradients.keys() == right.keys()
    for name, gradient in right.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("family", DECODERS)
def test_losses_and_gradients_are_those_of_the_samples_alone(family):
    assert_packed_is_alone(pico.PICO[family]())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_in_a_mixture_under_either_attention(attention):
    model = mixture(router_std=1.0)
    model.set_attn_implementation(attention)
    assert_packed_is_alone(model)


def test_without_a_form_samples_would_see_each_other():
    model = pico.PICO["llama"]()
    batch = PackedRows(collate, "positions")(ROWS)
    batch |= {"attention_mask": torch.ones_like(batch["input_ids"])}
    alone, _ = learned(model, [collate([sample]) for row in ROWS for sample in row])
    together, _ = learned(model, [batch])
    assert together != pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("family", [*LANGUAGE])
def test_the_form_that_is_right_for_a_family_is_found(family):
    model = LANGUAGE[family]()
    if family in REFUSED:
        with pytest.raises(DataError, match="would let packed samples see each other"):
            form_for(model, words(50, 9), ROOM)
    else:
        assert form_for(model, words(50, 9), ROOM) == ("mask" if family in BY_MASK else "positions")


def test_a_mode_and_a_type_are_left_as_found():
    model = pico.PICO["llama"]().train()
    assert form_for(model, words(50, 9), ROOM, torch.bfloat16) == "positions"
    assert model.training
    assert not torch.is_autocast_enabled("cpu")


def test_nothing_predicts_over_a_border_and_padding_is_ignored():
    batch = PackedRows(collate, "positions")([[{"input_ids": [5, 6], "labels": [5, 6]}] * 2, [sample(3, 0)]])
    assert batch["labels"][0].tolist() == [IGNORED, 6, IGNORED, 6]
    assert batch["position_ids"].tolist() == [[0, 1, 0, 1], [0, 1, 2, 0]]
    assert batch["labels"][1].tolist()[3] == IGNORED


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_every_sample_is_in_one_row_and_no_row_is_too_long(lengths):
    rows = fit(lengths, 20)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 20 for row in rows)
    # What is in the second of two rows had no room in the first.
    assert sum(sum(lengths[index] for index in row) <= 10 for row in rows) <= 1


def test_rows_are_the_first_that_have_room():
    assert fit([4, 8, 5, 2, 1], 10) == [[1, 3], [2, 0, 4]]


def test_a_window_says_how_full_its_rows_are():
    arrangement = packed(20, 0)
    samples = [sample(length, length) for length in (12, 8, 15, 4)]
    rows, count = arrangement.rows(samples, 0)
    assert sorted(sorted(tokens_in(s) for s in row) for row in rows) == [[4, 15], [8, 12]]
    assert arrangement.told(count) == {"packed": {"fill": 0.975, "samples_a_row": 2.0}}
    assert arrangement.rows(samples, 0)[0] == rows


def test_what_is_longer_than_a_row_is_refused():
    with pytest.raises(DataError, match="a sample has 21 tokens, max_length is 20"):
        packed(20, 0).rows([sample(21, 0)], 0)
    with pytest.raises(DataError, match="no room for two samples"):
        form_for(pico.PICO["llama"](), words(50, 9), 3)
