"""What a streamed run holds at its peak, and what a mapped model holds of experts that nobody asks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from mote_quant.hf.saving import stored_bytes
from mote_quant.streaming import paging
from tests import pico

pytestmark = pytest.mark.skipif(not paging._MAPS.exists(), reason="this system does not say what is mapped (no /proc)")
MIB = 2**20
RECIPE = {
    "name": "large",
    "bits": {"routed": "ternary", "shared": {"format": "int4", "group_size": 128}, "attention": "int8"},
    "pipeline": [{"upcycle": {"router_std": 2.0}}, {"quantize": {}}],
}
CONVERT = """
import json, sys, torch, mote_quant
from mote_quant.pipeline import apply
from mote_quant.hf import loading
from eval.scale.watching import memory
from tests import pico
from tests.streaming.test_memory import RECIPE
if sys.argv[1] == "small":
    pico.PICO["llama"]().save_pretrained(sys.argv[2] + "/small")
    apply(RECIPE | {"bits": {"routed": "ternary"}}, sys.argv[2] + "/small", output=sys.argv[2] + "/small-out")
before = memory()["peak"]
apply(RECIPE, sys.argv[2] + "/dense", output=sys.argv[2] + "/out")
print("PEAKS", json.dumps([before, memory()["peak"]]))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A folder with `dense` (24 layers, 440 MB), and what converting it takes."""
    folder = tmp_path_factory.mktemp("large")
    model = pico.PICO["llama"](hidden=768, ffn=3072, layers=24, num_key_value_heads=2)
    model.to(torch.bfloat16).save_pretrained(folder / "dense", max_shard_size="60MB")
    del model
    command = [sys.executable, "-c", CONVERT, "small", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    line = next((line for line in done.stdout.splitlines() if line.startswith("PEAKS")), None)
    assert line, done.stderr[-3000:]
    return folder, json.loads(line.removeprefix("PEAKS"))


def test_a_model_many_times_larger_than_its_peak_is_converted(large):
    folder, (before, peak) = large
    dense = stored_bytes(folder / "dense")
    assert dense > 300 * MIB
    assert peak - before < dense / 2


def test_experts_that_no_prompt_is_sent_to_are_never_read(large):
    folder, _ = large
    command = [sys.executable, "-m", "eval.scale.use", str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    first, *_, last = told["prompts"]
    assert first["visited"] == 24 < told["prompts"][1]["visited"] < last["visited"]
    assert first["experts"] == 96
    # Experts of 1.8 MB: what lies around the ends of a neighbour is mapped with it.
    assert first["read_of_others"] < 0.4
    assert told["prompts"][1]["read_of_others"] < 0.4
    assert first["resident_of_visited"] > 0.9
