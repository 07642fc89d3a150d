"""`generate` on a packed model, reloaded in a fresh process: the kernels ran, and its tokens are the reference's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mote_quant
from mote_quant.kernels.cpu import library
from tests import pico
from tests.mixtures import recipe
from tests.sources import source_for

BITS = {
    "routed": {"format": "ternary"},
    "shared": {"format": "int4", "group_size": 16},
    "attention": {"format": "int8"},
}
NEW_TOKENS = 12
PROGRAM = f"""
import json, sys
import torch
import mote_quant
from mote_quant.kernels.cpu import library
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
prompt = torch.arange(5, 17).view(2, 6)
before = library.calls()
tokens = model.generate(prompt, max_new_tokens={NEW_TOKENS}, min_new_tokens={NEW_TOKENS}, do_sample=False)
calls = {{op: count - before[op] for op, count in library.calls().items()}}
print(json.dumps({{"tokens": tokens.tolist(), "calls": calls}}))
"""


def generated(folder: Path, kernels: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env={**os.environ, library.CHOICE: kernels}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.skipif(library.library() is None, reason=f"no CPU kernels: {library.why_not()}")
@pytest.mark.parametrize(("packing", "slowest"), [("2bit", False), ("base3", True)])
def test_generate_runs_on_the_kernels_and_writes_the_tokens_of_the_reference(
    packing: str, slowest: bool, tmp_path: Path
) -> None:
    model = pico.PICO["qwen2"]()
    bits = BITS | {"routed": {"format": "ternary", "packing": packing}}
    mote_quant.apply(recipe(bits, train={}), model, data=source_for(model), output=tmp_path)
    layers = model.config.num_hidden_layers
    reference = generated(tmp_path, "reference")
    assert set(reference["calls"].values()) == {0}
    fast = generated(tmp_path, library.levels()[0 if slowest else -1].name)
    assert fast["tokens"] == reference["tokens"]
    assert fast["calls"]["ternary_experts"] == NEW_TOKENS * layers
    assert fast["calls"]["int_matmul"] >= NEW_TOKENS * layers * 3
    assert len(reference["tokens"][0]) == 6 + NEW_TOKENS
