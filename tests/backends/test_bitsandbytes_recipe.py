"""The shipped recipe for bitsandbytes; what the library finds is tested in test_bitsandbytes.py."""

from __future__ import annotations

from pathlib import Path

from mote_quant.kernels.packed_linear import PackedLinear
from tests.backends.beside import applied, check_reloads_without, needs

needs("bitsandbytes", "bnb")


def test_its_recipe_reloads_where_it_is_not_installed(tmp_path: Path) -> None:
    model, integers = applied("ptq-bitsandbytes", "llama", tmp_path, hidden=64, ffn=128)
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(integers) == 8
    assert {module.spec.format for module in integers.values()} == {"int8"}
    assert len(packed) == 14
    assert {module.spec.backend for module in packed} == {"bitsandbytes"}
    check_reloads_without("bitsandbytes", model, tmp_path)
