"""The memory estimate beside what a run really takes, in a process of its own: within a third, either way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mote_quant.estimate import Estimate, estimate, memory
from mote_quant.machine import Machine
from mote_quant.planning import plan_on, skeleton_for
from mote_quant.recipe import load
from mote_quant.streaming import streamable
from tests import pico

WITHIN = 1 / 3
# glibc keeps freed memory of small tensors for later; real models have few of them.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
CLEAR = Path("/proc/self/clear_refs")
SIZES = {"hidden": 512, "ffn": 1536, "layers": 4, "num_attention_heads": 8}
UPCYCLE = {"upcycle": {"experts": 4}}
BITS = {"routed": "ternary", "shared": {"format": "int4", "group_size": 64}, "router": "float32"}
TRAIN = {"what": ["routed", "router"], "data": "stdlib-text", "steps": 2, "batch_size": 4, "max_length": 128}
RECIPES: dict[str, dict[str, Any]] = {
    "trained": {"name": "trained", "bits": BITS, "pipeline": [UPCYCLE, {"train": TRAIN}, "quantize"]},
    "streamed": {"name": "streamed", "bits": BITS, "pipeline": [UPCYCLE, "quantize"]},
}
RUN = """
import json, re, sys
from pathlib import Path

import datasets, torch, transformers, transformers.trainer
from mote_quant import pipeline
from mote_quant.data.stdlib_text.processor import build_processor
from mote_quant.hf import trainer

def status(key):
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

recipe, small, folder, output = json.loads(sys.argv[1]), *sys.argv[2:]
processor = build_processor()
# What is imported on the way is there before the measurement begins.
pipeline.apply(recipe, small, processor=processor, output=f"{output}-small")
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
pipeline.apply(recipe, folder, processor=processor, output=output)
print(status("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A pico model and a medium one."""
    folder = tmp_path_factory.mktemp("models")
    context = {"vocab_size": 4096, "max_position_embeddings": 256}
    pico.PICO["llama"](hidden=64, ffn=64, **context).save_pretrained(folder / "pico")
    pico.PICO["llama"](**SIZES, **context).save_pretrained(folder / "medium")
    return folder / "pico", folder / "medium"


def told(recipe: dict[str, Any], folder: Path) -> Estimate:
    loaded, skeleton = load(recipe), skeleton_for(str(folder))
    planned = plan_on(loaded, skeleton)
    return estimate(planned, skeleton, Machine(None, None, None, 1), None, streamable(loaded))


@pytest.mark.skipif(not CLEAR.exists(), reason="peak memory is measured by what Linux says of it")
@pytest.mark.parametrize("name", RECIPES)
def test_peak_memory(name: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    expected = told(RECIPES[name], folders[1])
    assert expected.streamed is (name == "streamed")
    command = [sys.executable, "-c", RUN, json.dumps(RECIPES[name]), *map(str, folders), str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=os.environ | GIVEN_BACK
    )
    assert done.returncode == 0, done.stderr
    measured = int(done.stdout.split()[-1])
    assert expected.peak - memory.RUNTIME == pytest.approx(measured, rel=WITHIN)
