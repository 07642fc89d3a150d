from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mote_quant.kernels import triton
from mote_quant.recipe import TernaryBits
from tests.kernels.triton_kernels.weights import packed_experts, packed_ternary

SPEC = TernaryBits(format="ternary")


@pytest.fixture(autouse=True)
def forgotten():
    """What was found out about devices, before and after."""
    triton._usable.cache_clear()
    yield
    triton._usable.cache_clear()


def test_triton_is_not_imported_before_it_is_needed():
    code = "import sys, mote_quant.kernels.triton as ours; ours.installed(); sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tensors_on_the_cpu_are_not_taken(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not triton.supports(torch.ones(1, 8), packed_ternary(SPEC, (4, 8)))
    experts = packed_experts(SPEC, 2, 8, 4, gated=True, biased=False, activation="silu")
    assert not triton.supports_experts(torch.ones(1, 8), experts)


def test_without_triton_nothing_is_taken(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(triton, "find_spec", lambda name: None)
    assert not triton.installed()
    assert not triton.supports(torch.ones(1, 8), packed_ternary(SPEC, (4, 8)))


@pytest.mark.parametrize(
    ("capability", "hip", "taken"),
    [((8, 0), None, True), ((9, 0), None, True), ((7, 5), None, False), ((9, 4), "6", False)],
)
def test_only_gpus_for_which_code_was_generated_are_used(capability, hip, taken, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert triton._usable(torch.device("cuda", 0)) is taken
