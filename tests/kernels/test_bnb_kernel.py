from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from mote_quant.formats import Codes, format_for
from mote_quant.kernels import PackedLinear, bnb, table
from mote_quant.recipe.schema import CodebookBits


def layer(columns: int = 64) -> PackedLinear:
    codes = torch.randint(16, (3, columns), generator=torch.Generator().manual_seed(0))
    spec = CodebookBits(format="nf4")
    blocks = format_for(spec).layout((3, columns))["weight_scale"].shape
    return PackedLinear.pack(spec, Codes(codes, torch.rand(blocks)), torch.ones(3), torch.float32)


@pytest.fixture
def without(monkeypatch):
    monkeypatch.setattr(bnb, "library", lambda: None)


@pytest.fixture
def never_asked(monkeypatch):
    def ask() -> None:
        raise AssertionError("bitsandbytes was imported")

    monkeypatch.setattr(bnb, "library", ask)


@pytest.mark.usefixtures("without")
def test_without_the_library_the_reference_is_taken():
    packed, x = layer(), torch.randn(2, 64)
    assert not bnb.supports(x, packed.packed)
    assert torch.equal(packed(x), torch.nn.functional.linear(x, packed.dequantize(), packed.bias))


def test_with_the_library_its_product_is_taken(monkeypatch):
    monkeypatch.setattr(bnb, "library", lambda: SimpleNamespace())
    assert bnb.supports(torch.randn(2, 64), layer().packed)
    assert table._select("codebook_matmul", torch.randn(2, 64), layer().packed).name == "bitsandbytes"


@pytest.mark.usefixtures("never_asked")
@pytest.mark.parametrize(
    ("columns", "x"),
    [
        (48, torch.randn(2, 48)),  # blocks straddle rows
        (64, torch.randn(2, 64, dtype=torch.float64)),
        (64, torch.empty(2, 64, device="meta")),
        (64, torch.empty(0, 64)),
    ],
    ids=["straddling", "float64", "meta", "empty"],
)
def test_what_it_cannot_do_is_seen_before_it_is_imported(columns, x):
    assert not bnb.supports(x, layer(columns).packed)


def test_a_library_that_cannot_run_is_as_good_as_none_and_said(monkeypatch, caplog):
    def broken(name: str) -> None:
        raise RuntimeError("no such symbol")

    monkeypatch.setattr(bnb, "import_module", broken)
    bnb.library.cache_clear()
    try:
        assert bnb.library() is None
        assert "no such symbol" in caplog.text
    finally:
        bnb.library.cache_clear()


def test_the_first_choice_is_the_first_installed(monkeypatch):
    chosen = []
    for there in (True, False):
        monkeypatch.setattr(bnb, "find_spec", lambda name, there=there: object() if there else None)
        chosen.append(table.implementations()["codebook_matmul"])
    assert chosen == ["bitsandbytes", "torch"]
