"""Finished pico models in folders, saved once for all tests here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import pico, processors
from tests.finished import BITS, finished
from tests.mixtures import TERNARY, upcycled


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with ternary experts, an int4 shared one and int8 attention, its tokenizer beside it."""
    folder = tmp_path_factory.mktemp("packed")
    finished("llama", BITS).save_pretrained(folder)
    processors.tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def packed_vlm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of the same kind, its processor beside it."""
    folder = tmp_path_factory.mktemp("packed-vlm")
    finished("llava", BITS).save_pretrained(folder)
    processors.llava().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def latent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose ternary experts are still floats to be trained."""
    folder = tmp_path_factory.mktemp("latent")
    model = pico.PICO["llama"]()
    upcycled(model, TERNARY)
    model.save_pretrained(folder)
    return folder
