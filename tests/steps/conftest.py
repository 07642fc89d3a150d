"""Teachers on disk."""

from __future__ import annotations

import pytest

from tests import pico
from tests.mixtures import INT4_SHARED, TERNARY, quantize_it, upcycled


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another dense Llama than students are made of."""
    return pico.saved(tmp_path_factory.mktemp("teacher"), seed=9)


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A full-precision MoE, with its experts as trained."""
    folder, model = tmp_path_factory.mktemp("mixed"), pico.PICO["llama"](seed=9)
    upcycled(model, TERNARY)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def packed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A packed MoTE."""
    folder, model = tmp_path_factory.mktemp("packed"), pico.PICO["llama"](seed=9)
    quantize_it(model, upcycled(model, TERNARY | INT4_SHARED))
    model.save_pretrained(folder)
    return str(folder)
