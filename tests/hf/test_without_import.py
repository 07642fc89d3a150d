"""A process that has not imported mote_quant: whatever a file of ours holds, it is refused, never read as another."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mote_quant
from tests import pico
from tests.finished import finished
from tests.mixtures import INT4_SHARED, TERNARY, logits, mixture
from tests.sources import source_for

ROOT = Path(__file__).resolve().parents[2]
TERNARY_BASE3 = {"routed": {"format": "ternary", "packing": "base3"}}
INT4_QAT = {"routed": {"format": "int4", "group_size": 16, "method": "qat"}}
SQUARE = {"hidden": 32, "ffn": 32}
NATIVE_TRAIN = {"what": ["routed"], "data": "pico", "steps": 1, "batch_size": 2}

REFUSED = {
    "2bit": lambda: finished("llama", TERNARY),
    "base3": lambda: finished("llama", TERNARY_BASE3 | {"attention": "bfloat16"}),
    "binary": lambda: finished("llama", {"routed": {"format": "binary"}}, shared="none", top_k=2),
    "trained int4": lambda: finished("llama", INT4_QAT),
    "one layer of two": lambda: finished("llama", TERNARY, layers=[1]),
    "bias and no gate": lambda: finished("gpt2", TERNARY),
    "image and text": lambda: finished("llava", TERNARY | INT4_SHARED),
    "latent": lambda: mixture(TERNARY),
    "full precision experts": lambda: mixture(shared="none", top_k=2),
    "low rank experts": lambda: mixture(lora_rank=4),
    "int8 attention alone": lambda: quantized({"attention": "int8"}),
    "nf4 attention alone": lambda: quantized({"attention": "nf4"}),
    "int8 head alone": lambda: quantized({"head": "int8"}),
    "int2 of one projection": lambda: quantized({"*.layers.0.mlp.down_proj": {"format": "int2", "group_size": 16}}),
    "int8 of a square weight": lambda: quantized({"ffn": "int8"}, **SQUARE),
    "native experts": lambda: native({"quantize": {}}),
    "native latents": lambda: native({"train": NATIVE_TRAIN}),
}
LOADED = {
    "float16 and bfloat16": lambda: quantized({"attention": "float16", "head": "bfloat16"}),
    "all bfloat16": lambda: quantized({"*": "bfloat16"}),
}
READ = """
import json, sys, torch, transformers
from pathlib import Path
from safetensors.torch import load_file

assert "mote_quant" not in sys.modules
found = {}
for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
    head = transformers.AutoModelForImageTextToText if "image" in folder.name else transformers.AutoModelForCausalLM
    for auto, force in ((head, False), (transformers.AutoModel, False), (head, True)):
        way = auto.__name__ + (" by force" if force else "")
        try:
            model, info = auto.from_pretrained(folder, ignore_mismatched_sizes=force, output_loading_info=True)
        except Exception as error:
            found[f"{folder.name}: {way}"] = f"{type(error).__name__}: {error}"
            continue
        given = load_file(f"{folder}.safetensors")
        wanted = given.pop("logits")
        with torch.no_grad():
            off = float((model(**given).logits - wanted).norm() / wanted.norm()) if auto is head else None
        found[f"{folder.name}: {way}"] = {"off": off, "mismatched": len(info["mismatched_keys"])}
print("FOUND" + json.dumps(found))
"""


def quantized(bits: dict, **sizes):
    """A dense model, quantized as it is."""
    model = pico.PICO["llama"](**sizes)
    return mote_quant.apply({"name": "dense", "bits": bits, "pipeline": [{"quantize": {}}]}, model)


def native(step: dict):
    """A model that came with experts."""
    model = pico.qwen2_moe()
    bits = {"routed": {"format": "int4", "group_size": 16} if "quantize" in step else {"format": "ternary"}}
    made = {"name": "native", "bits": bits, "pipeline": [step]}
    return mote_quant.apply(made, model, data=source_for(model))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """What one fresh process made of all of them."""
    root = tmp_path_factory.mktemp("without")
    for name, make in (REFUSED | LOADED).items():
        model = make()
        model.save_pretrained(root / name, **({"max_shard_size": "20KB"} if name == "one layer of two" else {}))
        given = pico.inputs(model)
        given.pop("labels")
        save_file(given | {"logits": logits(model)}, root / f"{name}.safetensors")
    command = [sys.executable, "-c", READ, str(root)]
    done = subprocess.run(command, cwd=ROOT.anchor, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND")).removeprefix("FOUND"))


def ways(found: dict, name: str) -> dict:
    return {key.partition(": ")[2]: value for key, value in found.items() if key.startswith(f"{name}: ")}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name, found):
    for way, said in ways(found, name).items():
        if "by force" not in way and (name, way) != ("int8 head alone", "AutoModel"):
            assert isinstance(said, str), f"{way} loaded what it cannot know"
            assert "mismatch" in said or "automatic conversion" in said


def test_a_body_without_the_packed_head_is_a_dense_model(found):
    assert ways(found, "int8 head alone")["AutoModel"] == {"off": None, "mismatched": 0}


@pytest.mark.parametrize("name", LOADED)
def test_floats_are_floats_to_everybody(name, found):
    for said in ways(found, name).values():
        assert said["mismatched"] == 0
        assert said["off"] is None or said["off"] < 0.02


def test_who_forces_it_gets_noise_and_is_told(found):
    """What docs/footguns.md says of `ignore_mismatched_sizes`."""
    forced = {name: ways(found, name)[way] for name in REFUSED for way in ways(found, name) if "by force" in way}
    noise = {name: said for name, said in forced.items() if isinstance(said, dict)}
    assert len(noise) > 10
    assert all(said["mismatched"] > 0 and said["off"] > 0.1 for said in noise.values())
    assert "automatic conversion" in forced["native latents"]


def test_with_us_forcing_changes_nothing(packed):
    from transformers import AutoModelForCausalLM

    plain, forced = (AutoModelForCausalLM.from_pretrained(packed, ignore_mismatched_sizes=way) for way in (False, True))
    assert torch.equal(logits(plain), logits(forced))
