"""Models that come with experts, quantized expert by expert: plan, apply, report, save, reload in a fresh process."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from typer.testing import CliRunner

import mote_quant
from mote_quant.cli import app
from mote_quant.data.calibration import calibration_batches
from mote_quant.errors import CalibrationError, UnsupportedModelError
from mote_quant.hf.fused import fused_experts
from mote_quant.inspection import inspect
from mote_quant.kernels.cast_linear import CastLinear
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe.native import NativeExperts
from mote_quant.planning import plan
from tests import pico
from tests.fresh import give_inputs, load_all
from tests.mixtures import logits, tensors_in
from tests.sources import source_for

EXPERTS = "model.layers.0.mlp.experts"
FORMATS: dict[str, Any] = {
    "int4-rtn": {"format": "int4", "group_size": 16},
    "int3-gptq": {"format": "int3", "group_size": 16, "method": "gptq"},
    "nf4": "nf4",
}
CALIBRATION = {"data": "pico", "samples": 8, "batch_size": 4}


def recipe(bits: dict[str, Any], **quantize: Any) -> dict[str, Any]:
    return {"name": "native", "bits": bits, "pipeline": [{"quantize": {"calibration": CALIBRATION} | quantize}]}


def applied(model: PreTrainedModel, bits: dict[str, Any], folder: Path, **quantize: Any) -> dict[str, Any]:
    """Apply to `model` in place; the report."""
    mote_quant.apply(recipe(bits, **quantize), model, data=source_for(model), output=folder)
    report: dict[str, Any] = json.loads((folder / "run" / "report.json").read_text())
    assert report["bytes"]["predicted"] == report["bytes"]["stored"]
    return report


def packed_modules(model: nn.Module) -> dict[str, PackedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def packed(model: nn.Module) -> set[str]:
    return set(packed_modules(model))


Runs = tuple[Path, dict[str, PreTrainedModel], dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every family in every format, on disk and live, with the reports."""
    folder = tmp_path_factory.mktemp("runs")
    models, reports = {}, {}
    for family, build in pico.NATIVE_MOE.items():
        for name, spec in FORMATS.items():
            model, run = build(), f"{family}-{name}"
            reports[run] = applied(model, {"routed": spec}, folder / run)
            models[run] = model
            give_inputs(model, folder / run)
    return folder, models, reports


def test_a_fresh_process_reads_the_same_codes_and_logits(runs: Runs) -> None:
    folder, models, _ = runs
    assert set(load_all(folder, "import mote_quant").values()) == {"loaded"}
    for run, model in models.items():
        seen = load_file(folder / run / "seen.tensors")
        torch.testing.assert_close(seen.pop("the logits"), logits(model), rtol=1e-5, atol=1e-5)
        state = model.state_dict()
        assert state.keys() == seen.keys()
        assert all(torch.equal(state[name], seen[name]) for name in state), run
        assert len([name for name in state if ".experts." in name and name.endswith("weight_scale")]) > 12


def test_without_mote_quant_they_are_refused_not_filled_with_noise(runs: Runs) -> None:
    folder, models, _ = runs
    said = load_all(folder, "")
    assert said.keys() == models.keys()
    assert {text.partition(":")[0] for text in said.values()} == {"RuntimeError"}


def test_all_experts_are_packed_and_reported(runs: Runs) -> None:
    folder, models, reports = runs
    for run, model in models.items():
        layer = model.get_submodule(EXPERTS)
        assert isinstance(layer, NativeExperts)
        names = {f"{EXPERTS}.{n}.{kind}_proj" for n in range(layer.num_experts) for kind in ("gate", "up", "down")}
        assert names < packed(model)
        notes = reports[run]["steps"][0]["modules"]
        assert {notes[name]["role"] for name in names} == {"routed"}
        assert inspect(folder / run)["roles"]["routed"]["bits"] < 10


def test_coverage_lists_the_routed_experts() -> None:
    planned = plan(recipe({"routed": "int4"}), pico.NATIVE_MOE["mixtral"]())
    row = planned.coverage[0]
    assert (row.target, row.format, row.tensors, row.weights) == ("routed", "int4", 24, 24 * 32 * 48)
    assert "router" in {row.target for row in planned.coverage if row.format is None}
    assert planned.to_dict()["roles"]["routed"]["bits"] < 5


@pytest.mark.parametrize("family", pico.NATIVE_MOE)
def test_each_expert_is_calibrated_on_the_tokens_it_gets(family: str, runs: Runs) -> None:
    """Counted by the router of the dense model; what comes before the first layer's experts is as good as exact."""
    model = pico.NATIVE_MOE[family]()
    counts = torch.zeros(8, dtype=torch.long)

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        counts.add_(torch.bincount(args[1].flatten(), minlength=8))

    handle = model.get_submodule(EXPERTS).register_forward_pre_hook(count)
    drawn = calibration_batches(source_for(model), CALIBRATION["samples"], CALIBRATION["batch_size"], 0)
    with torch.no_grad():
        for batch in drawn.batches:
            model(**batch)
    handle.remove()
    notes = runs[2][f"{family}-int3-gptq"]["steps"][0]["modules"]
    experts = model.get_submodule(EXPERTS).num_experts
    seen = [notes[f"{EXPERTS}.{index}.down_proj"]["tokens"] for index in range(experts)]
    assert sum(seen) == int(counts.sum())
    assert max(abs(a - b) for a, b in zip(seen, counts.tolist(), strict=False)) <= 2
    assert len(set(seen)) > 1


def test_an_expert_that_gets_no_token(tmp_path: Path) -> None:
    bits = {"model.layers.0.mlp.experts": {"format": "int4", "method": "gptq"}}

    def model() -> PreTrainedModel:
        """All scores of the first router are 0, so that two of four experts get every token."""
        made = pico.NATIVE_MOE["mixtral"]()
        with torch.no_grad():
            made.model.layers[0].mlp.gate.weight.zero_()
        return made

    fallen = applied(model(), bits, tmp_path / "rtn")["steps"][0]["modules"]
    unhit = {name for name, note in fallen.items() if note["tokens"] == 0}
    assert len(unhit) == 6
    assert {fallen[name]["method"] for name in unhit} == {"rtn"}
    shown = applied(model(), bits, tmp_path / "all", unhit="route_all")["steps"][0]
    assert {shown["modules"][name]["tokens"] for name in unhit} == {shown["calibration"]["tokens"]}
    assert {shown["modules"][name]["method"] for name in unhit} == {"gptq"}
    with pytest.raises(CalibrationError, match=r"experts\.\d\.\w+ saw no calibration token"):
        applied(model(), bits, tmp_path / "error", unhit="error")


def test_formats_may_differ_from_expert_to_expert_and_from_layer_to_layer(tmp_path: Path) -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    bits = {
        f"{EXPERTS}.0": "int8",
        f"{EXPERTS}.1.up_proj": "float32",
        f"{EXPERTS}.*.down_proj": "nf4",
        EXPERTS: {"format": "int2", "group_size": 16},
    }
    applied(model, bits, tmp_path)
    found = {name.removeprefix(f"{EXPERTS}."): module.spec.format for name, module in packed_modules(model).items()}
    assert found == {
        **{f"0.{kind}_proj": "int8" for kind in ("gate", "up", "down")},
        **{f"{index}.down_proj": "nf4" for index in (1, 2, 3)},
        **{f"{index}.{kind}_proj": "int2" for index, kind in [(1, "gate"), *product((2, 3), ("gate", "up"))]},
    }
    assert list(fused_experts(model)) == ["model.layers.1.mlp.experts"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)
    assert packed(loaded) == packed(model)


def test_experts_of_another_float_type_cast_on_use(tmp_path: Path) -> None:
    model = pico.NATIVE_MOE["qwen2_moe"]()
    before = logits(model)
    applied(model, {"routed": "bfloat16"}, tmp_path)
    layer = model.get_submodule(EXPERTS)
    assert {type(module) for module in layer.experts[0].children()} == {CastLinear}
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert 0 < (logits(model) - before).norm() / before.norm() < 0.02
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {p.dtype for p in loaded.get_submodule(EXPERTS).parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_a_model_that_becomes_bfloat16_as_a_whole_stays_fused(tmp_path: Path) -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    applied(model, {"*": "bfloat16"}, tmp_path)
    assert len(fused_experts(model)) == 2
    assert f"{EXPERTS}.gate_up_proj" in model.state_dict()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.get_submodule(EXPERTS).gate_up_proj.dtype == torch.bfloat16
    torch.testing.assert_close(logits(loaded), logits(model))


@pytest.mark.parametrize("family", pico.NATIVE_MOE)
def test_packed_experts_in_a_model_that_becomes_bfloat16(family: str, tmp_path: Path) -> None:
    model = pico.NATIVE_MOE[family]()
    before = logits(model)
    applied(model, {"routed": "int8", "*": "bfloat16"}, tmp_path)
    assert logits(model).dtype == torch.bfloat16
    assert (logits(model) - before).norm() / before.norm() < 0.1
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    assert packed(loaded) == packed(model)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=2e-2, atol=2e-2)


def test_a_second_recipe_goes_on_from_there(runs: Runs, tmp_path: Path) -> None:
    folder, models, _ = runs
    model = AutoModelForCausalLM.from_pretrained(folder / "mixtral-int4-rtn")
    applied(model, {"head": "int8"}, tmp_path)
    assert packed(model) == packed(models["mixtral-int4-rtn"]) | {"lm_head"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_a_layer_at_a_time(tmp_path: Path) -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    applied(model, {EXPERTS: "int4"}, tmp_path / "first")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "first")
    applied(model, {"model.layers.1.mlp.experts": "int8"}, tmp_path / "second")
    assert not fused_experts(model)
    assert {name.split(".")[2]: module.spec.format for name, module in packed_modules(model).items()} == {
        "0": "int4",
        "1": "int8",
    }
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "second")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=1e-5)


def test_experts_that_compute_something_else_are_left_as_they_are() -> None:
    model = pico.NATIVE_MOE["qwen3_moe"]()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for layer in model.model.layers:
        layer.mlp.experts.forward = lambda hidden_states, top_k_index, top_k_weights: hidden_states
    with pytest.raises(UnsupportedModelError, match="something else"):
        mote_quant.apply({"name": "x", "bits": {"routed": "int4"}, "pipeline": ["quantize"]}, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["qwen2_moe", "mixtral"])
def test_from_the_command_line(family: str, tmp_path: Path) -> None:
    pico.NATIVE_MOE[family]().save_pretrained(tmp_path / "model")
    (tmp_path / "native.yaml").write_text(
        "name: native\nbits:\n  routed: {format: int4, group_size: 16}\n  attention: int8\npipeline: [quantize]\n"
    )
    arguments = [str(tmp_path / "native.yaml"), "-m", str(tmp_path / "model"), "--json"]
    planned = CliRunner().invoke(app, ["plan", *arguments])
    assert planned.exit_code == 0, planned.stderr
    done = CliRunner().invoke(app, ["apply", *arguments, "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.stderr
    held = sum(tensor.nbytes for tensor in tensors_in(tmp_path / "out").values())
    assert json.loads(planned.stdout)["stored_bytes"] == held
    inspected = CliRunner().invoke(app, ["inspect", str(tmp_path / "out"), "--json"])
    assert json.loads(inspected.stdout)["stored_bytes"] == held
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert f"{EXPERTS}.0.down_proj" in packed(loaded)
