"""The memory estimate beside what a run really takes, in a process of its own.

Within a third either way; of a training within a tenth.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mote_quant.estimate import Estimate, estimate, memory
from mote_quant.machine import Machine
from mote_quant.planning import plan_on, skeleton_for
from mote_quant.recipe import load
from mote_quant.streaming import streamable
from tests import pico

WITHIN = {"streamed": 1 / 3, "trained": 0.1}
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


def build(folder: Path, dtype: str = "float32", **sizes: Any) -> tuple[Path, Path]:
    """A pico model and a medium one."""
    context = {"vocab_size": 4096, "max_position_embeddings": 256}
    for name, own in (("pico", {"hidden": 64, "ffn": 64}), ("medium", SIZES | sizes)):
        model = pico.PICO["llama"](**(context | own)).to(getattr(torch, dtype))
        model.save_pretrained(folder / name)
    return folder / "pico", folder / "medium"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Of one size for all that does not say otherwise."""
    return build(tmp_path_factory.mktemp("models"))


def told(recipe: dict[str, Any], folder: Path) -> Estimate:
    loaded, skeleton = load(recipe), skeleton_for(str(folder))
    planned = plan_on(loaded, skeleton)
    return estimate(planned, skeleton, Machine(None, None, None, 1), None, streamable(loaded))


def measured_peak(recipe: dict[str, Any], folders: tuple[Path, Path], output: Path) -> int:
    command = [sys.executable, "-c", RUN, json.dumps(recipe), *map(str, folders), str(output)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=300, env=os.environ | GIVEN_BACK
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


@pytest.mark.skipif(not CLEAR.exists(), reason="peak memory is measured by what Linux says of it")
@pytest.mark.parametrize("name", RECIPES)
def test_peak_memory(name: str, folders: tuple[Path, Path], tmp_path: Path) -> None:
    expected = told(RECIPES[name], folders[1])
    assert expected.streamed is (name == "streamed")
    measured = measured_peak(RECIPES[name], folders, tmp_path / "out")
    assert expected.peak - memory.RUNTIME == pytest.approx(measured, rel=WITHIN[name])


GRID: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "long": ({}, {"batch_size": 16}, "float32"),
    "deep and narrow": ({"layers": 8, "hidden": 256, "ffn": 1024}, {"max_length": 256, "batch_size": 8}, "float32"),
    "many words": ({"vocab_size": 32768}, {"gradient_accumulation": 2}, "float32"),
    "checkpointed": ({}, {"batch_size": 16, "gradient_checkpointing": True}, "float32"),
    "checkpointed, accumulated": (
        {},
        {"batch_size": 16, "gradient_checkpointing": True, "gradient_accumulation": 2},
        "float32",
    ),
    "short latents": ({}, {"batch_size": 16, "latents": "bfloat16"}, "float32"),
    "from 16 bits": ({}, {"batch_size": 16}, "bfloat16"),
    "in 16 bits": ({}, {"batch_size": 16, "precision": "bfloat16"}, "bfloat16"),
    "ramped": ({}, {"batch_size": 8, "ternary_ramp": 0.5, "steps": 4}, "float32"),
    "everything": ({}, {"batch_size": 8, "what": ["routed", "router", "shared", "attention"]}, "float32"),
}


@pytest.mark.slow
@pytest.mark.skipif(not CLEAR.exists(), reason="peak memory is measured by what Linux says of it")
@pytest.mark.parametrize("name", GRID)
def test_peak_memory_of_trainings(name: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    sizes, settings, dtype = GRID[name]
    folders = build(tmp_path, dtype, **sizes)
    recipe = {
        "name": "grid",
        "bits": {"routed": "ternary"},
        "pipeline": [UPCYCLE, {"train": TRAIN | settings}, "quantize"],
    }
    expected = told(recipe, folders[1])
    measured = measured_peak(recipe, folders, tmp_path / "out")
    record_property("foretold", f"{(expected.peak - memory.RUNTIME) / measured - 1:+.1%} of {measured / 2**20:.0f} MiB")
    assert expected.peak - memory.RUNTIME == pytest.approx(measured, rel=WITHIN["trained"])
