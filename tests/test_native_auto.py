"""`bits: auto` for experts that a model came with: each gets its own integer within the budget, saved and reloaded."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import mote_quant
from mote_quant.data.calibration import calibration_batches
from mote_quant.hf.fused import fused_experts
from mote_quant.kernels.packed_linear import PackedLinear
from tests.mixtures import bits_of, logits
from tests.pico_moe import PICO_MOE
from tests.sources import source_for

FAMILIES = ["Mixtral", "Qwen3-MoE", "DeepSeek-V3", "GPT-OSS", "Llama 4"]
CALIBRATION: dict[str, Any] = {"data": "pico", "samples": 8, "batch_size": 4}
AUTO: dict[str, Any] = {"format": "auto", "choices": ["int2", "int3", "int4"], "average_bits": 2.75, "group_size": 16}
AUTO |= {"decide": "expert", "method": "gptq"}
RECIPE: dict[str, Any] = {
    "name": "native-auto",
    "bits": {"routed": AUTO},
    "pipeline": [{"quantize": {"calibration": CALIBRATION}}],
}

Run = tuple[str, Path, PreTrainedModel, dict[str, Any]]


@pytest.fixture(scope="module", params=FAMILIES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Family, folder, live model and report."""
    folder = tmp_path_factory.mktemp(request.param)
    model = PICO_MOE[request.param]()
    mote_quant.apply(RECIPE, model, data=source_for(model), output=folder)
    return request.param, folder, model, json.loads((folder / "run" / "report.json").read_text())


def chosen(model: nn.Module) -> dict[str, str]:
    return {name: module.spec.format for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def traffic(family: str) -> dict[str, list[float]]:
    """Tokens an expert of the first mixture gets from the router of the untouched model, and the weights it gives."""
    model = PICO_MOE[family]()
    path, experts = next(iter(fused_experts(model).items()))
    tokens: Counter[str] = Counter()

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        if len(args) == 1:  # every expert is given all tokens, those that are not its own as zeros
            sent = args[0].view(experts.num_experts, -1, args[0].shape[-1]).any(-1).sum(1).tolist()
        else:
            sent = torch.bincount(args[1].flatten(), minlength=experts.num_experts).tolist()
        tokens.update({f"{path}.{index}": number for index, number in enumerate(sent)})

    handle = experts.register_forward_pre_hook(count)
    batches = calibration_batches(source_for(model), CALIBRATION["samples"], CALIBRATION["batch_size"], 0).batches
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    handle.remove()
    offered = sum(batch["input_ids"].numel() for batch in batches)
    return {name: number / offered for name, number in tokens.items()}


def test_every_expert_gets_one_format_within_the_budget(run: Run) -> None:
    _, _, model, report = run
    tables = report["steps"][0]["allocation"]
    assert report["bytes"]["predicted"] == report["bytes"]["stored"]
    assert {row["format"] for row in tables["units"]} <= {"int2", "int3", "int4"}
    assert len({row["format"] for row in tables["units"]}) > 1
    formats = chosen(model)
    assert len(formats) == 3 * len(tables["units"])
    for row in tables["units"]:
        assert {formats[name] for name in formats if name.startswith(f"{row['unit']}.")} == {row["format"]}
    auto, *uniform = tables["mixes"]
    assert auto["within_budget"]
    assert auto["average_bits"] <= 2.75
    assert all(auto["predicted_kl"] <= mix["predicted_kl"] for mix in uniform if mix["within_budget"])


def test_what_it_counts_is_what_the_models_own_router_sends(run: Run) -> None:
    family, _, _, report = run
    units = {row["unit"]: row for row in report["steps"][0]["allocation"]["units"]}
    for name, share in traffic(family).items():
        assert units[name]["frequency"] == pytest.approx(share, abs=0.03)
        assert units[name]["gate"] > 0 or share == 0


def test_it_is_read_back_and_the_rest_is_as_it_was(run: Run) -> None:
    family, folder, model, _ = run
    again = type(model).from_pretrained(folder)
    assert chosen(again) == chosen(model)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)
    before, after = bits_of(PICO_MOE[family]().state_dict()), model.state_dict()
    kept = [name for name in before if ".experts." not in name]
    assert all(torch.equal(before[name], after[name]) for name in kept)
