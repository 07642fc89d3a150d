"""Experts that a model came with, trained to low bits where they stand: plan, train, pack, save, reload, resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2MoeForCausalLM, Trainer, TrainingArguments

import mote_quant
from mote_quant.errors import AlreadyMoEError, FormatError, RequestError, TargetError
from mote_quant.hf.fused import fused_experts
from mote_quant.hf.integrity import sha256
from mote_quant.hf.latents import make_latent
from mote_quant.hf.skeleton import shadow
from mote_quant.hf.structure import Structure, structure_of
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import packed as packed_module
from mote_quant.moe.native import NativeExperts
from mote_quant.pipeline import Options
from mote_quant.planning import plan
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import TernaryBits
from tests import pico
from tests.fresh import give_inputs, load_all
from tests.mixtures import bits_of, logits
from tests.pico_moe import PICO_MOE
from tests.sources import source_for
from tests.stopping import Stop, StopError

TERNARY = {"routed": "ternary"}
STEP = {"what": ["routed"], "data": "pico", "steps": 3, "batch_size": 4, "learning_rate": 1e-2}
FORMATS: dict[str, dict[str, Any]] = {
    "ternary, learned scales": {"routed": {"format": "ternary", "granularity": "channel", "scales": "learned"}},
    "binary": {"routed": {"format": "binary", "granularity": "channel"}},
    "int4 by qat": {"routed": {"format": "int4", "group_size": 16, "method": "qat"}},
    "one projection": {"*.experts.*.down_proj": "ternary", "routed": {"format": "int4", "group_size": 16}},
}


def recipe(bits: dict[str, Any] = TERNARY, quantize: dict[str, Any] | None = None, **train: Any) -> dict[str, Any]:
    """Train, then quantize."""
    return {"name": "native-qat", "bits": bits, "pipeline": [{"train": STEP | train}, {"quantize": quantize or {}}]}


def applied(model: PreTrainedModel, made: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Apply to `model` in place; the report, whose bytes are those planned."""
    mote_quant.apply(made, model, data=source_for(model), output=folder)
    report: dict[str, Any] = json.loads((folder / "run" / "report.json").read_text())
    assert report["bytes"]["predicted"] == report["bytes"]["stored"]
    return report


def latents(model: nn.Module) -> dict[str, QatLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, QatLinear)}


def packed(model: nn.Module) -> dict[str, PackedLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, PackedLinear)}


def beside_experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if ".experts." not in name}


Runs = tuple[Path, dict[str, PreTrainedModel], dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every family trained to ternary, on disk and live, with the reports."""
    folder = tmp_path_factory.mktemp("runs")
    models, reports = {}, {}
    for family, build in PICO_MOE.items():
        models[family] = build()
        reports[family] = applied(models[family], recipe(), folder / family)
        give_inputs(models[family], folder / family)
    return folder, models, reports


def test_a_fresh_process_reads_the_same_codes_and_logits(runs: Runs) -> None:
    folder, models, _ = runs
    assert load_all(folder, "import mote_quant") == dict.fromkeys(models, "loaded")
    for family, model in models.items():
        seen = load_file(folder / family / "seen.tensors")
        torch.testing.assert_close(seen.pop("the logits"), logits(model), rtol=1e-5, atol=1e-5)
        state = model.state_dict()
        assert state.keys() == seen.keys(), family
        assert all(torch.equal(state[name], seen[name]) for name in state), family


def test_without_mote_quant_they_are_refused_not_filled_with_noise(runs: Runs) -> None:
    folder, models, _ = runs
    said = load_all(folder, "")
    assert {family: text.partition(":")[0] for family, text in said.items()} == dict.fromkeys(models, "RuntimeError")


@pytest.mark.parametrize("family", PICO_MOE)
def test_all_experts_are_packed_and_nothing_else_is_touched(family: str, runs: Runs) -> None:
    _, models, reports = runs
    model, dense = models[family], PICO_MOE[family]()
    paths = list(fused_experts(dense))
    experts = [f"{path}.{index}." for path in paths for index in range(model.get_submodule(path).num_experts)]
    assert {name.rpartition(".")[0] + "." for name in packed(model)} == set(experts)
    assert {module.spec.format for module in packed(model).values()} == {"ternary"}
    before, after = beside_experts(dense.state_dict()), beside_experts(model.state_dict())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    trained = reports[family]["steps"][0]["trained"]
    assert trained.keys() == {"routed"}
    assert trained == plan(recipe(), PICO_MOE[family]()).trained[0]["trained"]


def test_training_starts_from_what_was_there() -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    before = logits(model)
    formats = plan(recipe(FORMATS["ternary, learned scales"]), model).formats
    path, fused = next(iter(fused_experts(model).items()))
    first = fused.gate_up_proj[2, :48].detach().clone()
    assert len(make_latent(model, formats)) == 24
    assert make_latent(model, formats) == []
    gate = model.get_submodule(f"{path}.2.gate_proj")
    assert torch.equal(gate.weight, first)
    assert torch.allclose(gate.weight_scale.flatten(), first.abs().mean(dim=1), rtol=1e-5)
    rounded = logits(model)
    for module in latents(model).values():
        module.strength = 0.0
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(rounded, before, atol=1e-2)


def test_training_makes_it_better_than_rounding() -> None:
    losses = {}
    for steps in (1, 40):
        model = pico.NATIVE_MOE["mixtral"]()
        source = source_for(model, samples=8)
        made = recipe(steps=steps, learning_rate=1e-9 if steps == 1 else 1e-2)
        mote_quant.apply(made, model, data=source)
        with torch.no_grad():
            losses[steps] = float(model(**source.collate(source.train)).loss)
    assert losses[40] < losses[1] - 0.3


@pytest.mark.parametrize("case", FORMATS)
def test_every_format_that_is_trained(case: str, tmp_path: Path) -> None:
    model = pico.NATIVE_MOE["qwen3_moe"]()
    applied(model, recipe(FORMATS[case]), tmp_path)
    formats = {module.spec.format for module in packed(model).values()}
    assert formats == {spec if isinstance(spec, str) else spec["format"] for spec in FORMATS[case].values()}
    assert len(packed(model)) == 24
    again = type(model).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)
    assert {name: module.spec for name, module in packed(again).items()} == {
        name: module.spec for name, module in packed(model).items()
    }


def test_packed_ternary_experts_run_as_one_operation(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    model = runs[1]["Mixtral"]
    together, calls = logits(model), []
    kept = packed_module._call

    def counted(*args: Any) -> Tensor:
        calls.append(args)
        return kept(*args)

    monkeypatch.setattr(packed_module, "_call", counted)
    logits(model)
    assert len(calls) == 2
    monkeypatch.setattr("mote_quant.moe.native.packed_experts", lambda *args: None)
    torch.testing.assert_close(logits(model), together, rtol=1e-4, atol=1e-4)


def test_a_model_in_bfloat16_trains_float32_latents(tmp_path: Path) -> None:
    pico.NATIVE_MOE["qwen2_moe"]().to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    model = Qwen2MoeForCausalLM.from_pretrained(tmp_path / "dense", dtype="auto")  # rotary tables stay float32
    before = bits_of(beside_experts(model.state_dict()))
    report = applied(model, recipe(quantize={"keep_latents": True}), tmp_path / "out")
    assert report["steps"][0]["trained"] == {"routed": 27648}
    assert {module.weight.dtype for module in latents(model).values()} == {torch.float32}
    after = beside_experts(model.state_dict())
    assert all(torch.equal(before[name], after[name]) for name in before)
    model.save_pretrained(tmp_path / "latent", latent=True)
    again = type(model).from_pretrained(tmp_path / "latent", dtype="auto")
    assert (again.dtype, {m.weight.dtype for m in latents(again).values()}) == (torch.bfloat16, {torch.float32})
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-5, atol=1e-5)
    codes = type(model).from_pretrained(tmp_path / "out", dtype="auto")
    assert all(
        torch.equal(module.codes(), latents(model)[name].codes().codes) for name, module in packed(codes).items()
    )


@pytest.mark.parametrize("family", ["Mixtral", "GPT-OSS"])
def test_kept_latents_are_saved_loaded_and_trained_on(family: str, tmp_path: Path) -> None:
    model = PICO_MOE[family]()
    applied(model, recipe(FORMATS["ternary, learned scales"], {"keep_latents": True}), tmp_path / "out")
    assert packed(type(model).from_pretrained(tmp_path / "out")).keys() == latents(model).keys()
    model.save_pretrained(tmp_path / "latent", latent=True)
    again = type(model).from_pretrained(tmp_path / "latent")
    state = model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in again.state_dict().items())
    assert structure_of(again, latent=True) == structure_of(model, latent=True)
    started = {name: module.codes().codes for name, module in latents(again).items()}
    source = source_for(again)
    options = TrainingArguments(
        output_dir=str(tmp_path / "trainer"), max_steps=4, learning_rate=0.1, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(again, options, train_dataset=list(source.train), data_collator=source.collate).train()
    assert any(not torch.equal(module.codes().codes, started[name]) for name, module in latents(again).items())
    again.save_pretrained(tmp_path / "packed", latent=False)
    finished = type(model).from_pretrained(tmp_path / "packed")
    torch.testing.assert_close(logits(finished), logits(again), rtol=1e-4, atol=1e-4)


def test_training_alone_leaves_latents_to_go_on_with(tmp_path: Path) -> None:
    made = recipe()
    made["pipeline"].pop()
    model = pico.NATIVE_MOE["olmoe"]()
    applied(model, made, tmp_path / "first")
    again = type(model).from_pretrained(tmp_path / "first")
    assert len(latents(again)) == 24
    packs = {"name": "pack", "bits": TERNARY, "pipeline": ["quantize"]}
    applied(again, packs, tmp_path / "second")
    for name, module in packed(again).items():
        assert torch.equal(module.codes(), latents(model)[name].codes().codes)


def test_the_structure_of_latent_experts_is_data() -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    assert "latent" not in structure_of(model, latent=True).to_dict()
    make_latent(model, plan(recipe(), model).formats)
    structure = structure_of(model, latent=True)
    assert Structure.from_dict(json.loads(json.dumps(structure.to_dict()))) == structure
    assert set(structure.latent.values()) == {TernaryBits(format="ternary")}
    again = shadow(model)
    assert latents(again).keys() == latents(model).keys()
    assert structure_of(model, latent=False).packed.keys() == structure.latent.keys()
    assert structure_of(model, latent=False).latent == {}


def test_the_router_moves_only_where_it_is_named() -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    before = bits_of(model.state_dict())
    mote_quant.apply(recipe(what=["routed", "router"]), model, data=source_for(model))
    state = model.state_dict()
    moved = {name for name in before if ".experts." not in name and not torch.equal(state[name], before[name])}
    assert moved == {f"model.layers.{index}.mlp.gate.weight" for index in (0, 1)}


@pytest.mark.parametrize("family", ["Mixtral", "Nemotron-H", "GPT-OSS", "LFM2-MoE", "Llama 4"])
def test_gradients_are_those_of_plain_autograd(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The feed-forward networks of experts in training are one step of autograd, whatever joins gate and up."""
    model = PICO_MOE[family]()
    make_latent(model, plan(recipe(), model).formats)
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(**pico.inputs(model)).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        monkeypatch.setattr("mote_quant.moe.experts.feed_forward", lambda *args: None)
    together, alone = gradients
    assert together.keys() == alone.keys()
    assert any(".experts." in name and gradient.any() for name, gradient in together.items())
    for name, gradient in together.items():
        torch.testing.assert_close(gradient, alone[name], rtol=1e-3, atol=1e-5, msg=name)


# --- a run that is stopped and taken up again ----------------------------------------------------------------------

STAGED = {
    "name": "staged",
    "bits": FORMATS["ternary, learned scales"] | {"attention": "int8"},
    "pipeline": [
        {"train": STEP | {"what": ["attention"]}},
        {"train": STEP | {"steps": 6, "checkpoint_every": 2}},
        {"quantize": {}},
    ],
}


def staged(folder: Path, progress: Stop) -> str:
    model = PICO_MOE["DeepSeek-V3"]()
    mote_quant.apply(STAGED, model, data=source_for(model), output=folder, options=Options(progress))
    return sha256(folder / "model.safetensors")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The file of a run that nothing stopped."""
    return staged(tmp_path_factory.mktemp("whole"), Stop())


@pytest.mark.parametrize(
    "stop", [("training", 2, 1), ("training", 1, 2), ("training", 5, 2), ("quantizing", 2, 1)], ids=str
)
def test_a_stopped_run_ends_in_the_same_bytes(stop: tuple[str, int, int], whole: str, tmp_path: Path) -> None:
    with pytest.raises(StopError):
        staged(tmp_path, Stop(*stop))
    assert staged(tmp_path, Stop()) == whole


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "error", "words"),
    [
        (recipe() | {"pipeline": ["quantize"]}, FormatError, r"no train step of this recipe moves it\. Put one before"),
        (recipe(what=["attention"]), FormatError, r"experts\.0\.gate_proj cannot be ternary: .* no train step"),
        (recipe({"*.experts.0.*": "ternary"}), FormatError, "alike, gate_proj for ternary, but 1.gate_proj is "),
        (recipe({"*.experts.*.gate_proj": "ternary"}), FormatError, "gate_proj and up_proj are given one input"),
        (recipe({"shared": "ternary"}), TargetError, "shared matches nothing"),
        (recipe({"attention": "ternary"}), FormatError, "for routed experts only"),
        (recipe({"router": "ternary"}), FormatError, r"\(router\) cannot be ternary"),
        (
            recipe() | {"pipeline": [{"upcycle": {}}, {"train": STEP}, "quantize"]},
            AlreadyMoEError,
            r"layers\.0\.mlp\.experts already holds experts; only dense",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_so(made: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        plan(made, pico.NATIVE_MOE["mixtral"]())


def test_a_dense_model_has_nothing_to_train_so() -> None:
    with pytest.raises(TargetError, match="routed matches nothing: no parameter has this role"):
        plan(recipe(), pico.PICO["llama"]())


def test_experts_that_cannot_be_taken_apart_say_why() -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    for layer in model.model.layers:
        layer.mlp.experts.register_parameter("scale", nn.Parameter(torch.ones(3)))
    before = bits_of(model.state_dict())
    with pytest.raises(RequestError):
        mote_quant.apply(recipe(), model, data=source_for(model))
    assert not any(isinstance(module, NativeExperts) for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
