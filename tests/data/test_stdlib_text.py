"""The embedded text source."""

from __future__ import annotations

import pytest

from mote_quant.data import open_source
from mote_quant.data.stdlib_text import corpus
from mote_quant.data.stdlib_text.model import build_config, build_dense
from mote_quant.data.stdlib_text.processor import build_processor


@pytest.fixture(scope="module")
def source():
    return open_source("stdlib-text")


def test_files_are_held_out_whole():
    documents = corpus.documents()
    assert set(documents["train"]).isdisjoint(documents["test"])
    assert set(documents["train"]).isdisjoint(documents["validation"])
    assert sum(map(len, documents["test"])) > 50_000


def test_it_is_deterministic(source):
    build_processor.cache_clear()
    corpus.documents.cache_clear()
    assert open_source("stdlib-text").fingerprint == source.fingerprint


def test_the_tokenizer_takes_any_text_back_and_forth():
    tokenizer = build_processor()
    text = "def naïve(x: int) -> str:\n\treturn '—☃' * x\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_the_model_fits_the_tokenizer_and_learns_nothing_from_the_seed_of_the_caller(source):
    import torch

    state = torch.get_rng_state()
    model = build_dense(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.config.vocab_size == build_config().vocab_size
    batch = source.collate(source.train[:2])
    assert int(batch["input_ids"].max()) < model.config.vocab_size
    assert torch.isfinite(model(**batch).loss)
