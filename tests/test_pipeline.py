"""`apply`, `plan`, `inspect`: bytes foretold and bytes on disk, the report, what moves and what does not."""

from __future__ import annotations

import json

import pytest
import torch

import mote_quant
from mote_quant.errors import AlreadyMoEError, TargetError
from mote_quant.fingerprint import fingerprint_of, weights_hash
from mote_quant.inspection import inspect
from mote_quant.moe import blocks
from mote_quant.pipeline import Options, apply
from mote_quant.planning import plan
from mote_quant.recipe import load
from mote_quant.recipe.schema import Upcycle
from mote_quant.steps import upcycle
from mote_quant.steps.upcycle.preservation import Receipt, probe
from tests import pico
from tests.killing import Bomb
from tests.mixtures import CALIBRATION, INT4_SHARED, TERNARY, bits_of, context_for, logits, step, tensors_in
from tests.sources import source_for


def ternary(**settings) -> dict:
    return {"routed": {"format": "ternary"} | settings}


def integer(name: str, group: int, symmetric: bool, **more) -> dict:
    return {"format": name, "group_size": group, "symmetric": symmetric} | more


TERNARIES = {
    f"{packing} {granularity}": ternary(packing=packing, granularity=granularity, **size)
    for packing in ("2bit", "base3")
    for granularity, size in (("tensor", {}), ("channel", {}), ("group", {"group_size": 9}))
}
INTEGERS = {
    f"{name} {group} {'symmetric' if symmetric else 'asymmetric'}": {
        "shared": integer(name, group, symmetric),
        "attention": integer(name, group, not symmetric, scale_dtype="float32"),
    }
    for name, group, symmetric in (
        ("int8", -1, True),
        ("int8", 7, False),
        ("int4", 16, True),
        ("int4", 5, False),
        ("int3", -1, False),
        ("int3", 8, True),
        ("int2", 38, False),
        ("int2", 3, True),
    )
}
OTHERS = {
    "float16 scales": ternary(scale_dtype="float16") | INT4_SHARED,
    "casts": TERNARY | {"head": "bfloat16", "attention": "float16", "router": "float32"},
    "everything in bfloat16": {"router": "float32", "*": "bfloat16"},
    "experts as integers": {"routed": "int3", "shared": "int8"},
    "experts in bfloat16": {"routed": "bfloat16"},
    "by gptq": TERNARY | {"shared": {"format": "int4", "group_size": 16, "method": "gptq"}},
}
FORMATS = TERNARIES | INTEGERS | OTHERS


def made_of(bits: dict, **upcycle) -> dict:
    quantize = CALIBRATION if "gptq" in str(bits) else {}
    return {"name": "bytes", "bits": bits, "pipeline": [{"upcycle": upcycle}, {"quantize": quantize}]}


@pytest.mark.parametrize("case", FORMATS)
def test_foretold_bytes_are_the_bytes_on_disk(case, tmp_path):
    model = pico.PICO["llama"](**pico.ODD)
    recipe = made_of(FORMATS[case], experts=3, top_k=2, combine="zero_init")
    foretold = plan(recipe, model)
    from_config = plan(recipe, pico.PICO["llama"](**pico.ODD).config)
    apply(recipe, model, data=source_for(model), output=tmp_path)
    tensors = tensors_in(tmp_path)
    on_disk = sum(tensor.nbytes for tensor in tensors.values())
    assert foretold.result.stored_bytes == from_config.result.stored_bytes == on_disk
    seen = inspect(tmp_path)
    assert seen["stored_bytes"] == on_disk
    assert seen["roles"] == foretold.to_dict()["roles"]
    assert sum(row.bytes_after for row in foretold.coverage) == on_disk
    covered = {row.target for row in foretold.coverage if row.format}
    assert covered == set(FORMATS[case])
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["bytes"]["predicted"] == report["bytes"]["stored"] == on_disk


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "opt", "llava"])
def test_foretold_bytes_with_ties_biases_and_towers(family, tmp_path):
    model = pico.PICO[family](**pico.ODD)
    bits = TERNARIES["base3 channel"] | {"shared": integer("int3", 5, False), "attention": "int8"}
    bits |= {"vision": "int8", "projector": "int4"} if family == "llava" else {}
    recipe = made_of(bits, layers=[1])
    foretold = plan(recipe, model).result.stored_bytes
    apply(recipe, model, output=tmp_path)
    assert (
        foretold == sum(tensor.nbytes for tensor in tensors_in(tmp_path).values()) == inspect(tmp_path)["stored_bytes"]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_foretold_bytes_of_a_half_precision_model(dtype, tmp_path):
    model = pico.PICO["qwen2"](**pico.ODD).to(dtype)
    recipe = made_of(TERNARY | INT4_SHARED, combine="zero_init")
    foretold = plan(recipe, model).result.stored_bytes
    apply(recipe, model, output=tmp_path)
    assert foretold == sum(tensor.nbytes for tensor in tensors_in(tmp_path).values())


def test_an_upcycled_model_without_quantize_step_too(tmp_path):
    model = pico.PICO["llama"]()
    recipe = {"name": "latent", "pipeline": [{"upcycle": {}}]}
    foretold = plan(recipe, model).result.stored_bytes
    apply(recipe, model, output=tmp_path)
    assert foretold == inspect(tmp_path)["stored_bytes"]


RECIPE = {
    "name": "whole",
    "seed": 3,
    "bits": TERNARY | INT4_SHARED,
    "pipeline": [
        {"upcycle": {"noise": 0.2, "combine": "convex", "mix": 0.25}},
        {"train": {"what": ["routed", "router"], "data": "pico", "steps": 4, "batch_size": 4, "z_loss": 0.1}},
        {"quantize": {}},
    ],
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    model = pico.PICO["llava"]()
    before = bits_of(model.state_dict())
    apply(RECIPE, model, data=source_for(model), output=folder)
    return model, before, folder


def test_the_model_is_changed_in_place_and_returned():
    model = pico.PICO["llama"]()
    returned = mote_quant.apply(RECIPE, model, data=source_for(model))
    assert returned is model
    assert len(blocks(model)) == 2


def test_what_no_step_names_is_bit_identical_after_reload(whole):
    model, before, folder = whole
    loaded = type(model).from_pretrained(folder).state_dict()
    kept = {name for name in before if "language_model.layers" not in name or ".mlp." not in name}
    for part in ("self_attn", "vision_tower", "multi_modal_projector", "embed_tokens", "lm_head"):
        assert any(part in name for name in kept)
    assert all(torch.equal(loaded[name], before[name]) for name in kept)


def test_the_report(whole):
    _, _, folder = whole
    report = json.loads((folder / "run" / "report.json").read_text())
    assert {"recipe", "steps", "preservation", "bytes", "metrics", "coverage", "provenance"} == set(report)
    dense, made = pico.PICO["llava"](), pico.PICO["llava"]()
    apply({"name": "step-0", "seed": 3, "pipeline": RECIPE["pipeline"][:1]}, made)
    # Step 0 of this run had ternary experts already, so the receipt is not that of full-precision copies ...
    assert report["preservation"] != Receipt.between(probe(dense), probe(made)).to_dict()
    # ... but that of the same up-cycling with them.
    again, recipe = pico.PICO["llava"](), load(RECIPE)
    upcycle.run(again, step(recipe, Upcycle), context_for(recipe, again))
    assert report["preservation"] == pytest.approx(Receipt.between(probe(dense), probe(again)).to_dict())
    train = report["steps"][1]
    assert train["tokens"] == report["metrics"]["tokens_seen"] == 4 * 4 * (9 + 4)
    assert report["provenance"]["seed"] == 3
    for name in ("report.md", "report.html", "plan.json", "recipe.yaml", "journal.jsonl", "fingerprint.json"):
        assert (folder / "run" / name).stat().st_size > 0
    assert load(folder / "run" / "recipe.yaml") == load(RECIPE)


def test_inspect_shows_routers_and_provenance(whole):
    model, _, folder = whole
    seen = inspect(folder)
    assert set(seen["router"]) == set(blocks(model))
    assert seen["provenance"]["tokens_seen"] == 4 * 4 * 13
    assert seen["provenance"]["fingerprint"]["data"] == {"pico": "pico"}


def test_plan_names_what_trains_and_changes_nothing():
    model = pico.PICO["llama"]()
    before = weights_hash(model)
    planned = plan(RECIPE, model)
    assert weights_hash(model) == before
    assert set(planned.trained[0]["trained"]) == {"routed", "router"}
    assert planned.dense.stored_bytes == sum(t.nbytes for t in model.state_dict().values())
    json.dumps(planned.to_dict())


def test_progress_hears_of_every_stretch():
    heard: list[tuple[str, int]] = []

    class Ear(Bomb):
        def start(self, title, total):
            heard.append((title, total))
            super().start(title, total)

    model = pico.PICO["llama"]()
    apply(RECIPE, model, data=source_for(model), options=Options(Ear()))
    assert heard == [("up-cycling", 2), ("training", 4), ("quantizing", 6)]


def test_the_fingerprint_sees_weights_types_and_names():
    model = pico.PICO["llama"]()
    first = weights_hash(model)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-6
    second = weights_hash(model)
    assert first != second
    assert weights_hash(pico.PICO["llama"]()) == first
    assert len({first, second, weights_hash(pico.PICO["llama"]().to(torch.bfloat16))}) == 3
    given = fingerprint_of(load(RECIPE), model, lambda name, length: source_for(model))
    assert set(given) == {"recipe", "model", "config", "data"}


def test_applying_a_recipe_to_its_own_result_is_refused():
    model = pico.PICO["llama"]()
    apply(RECIPE, model, data=source_for(model))
    with pytest.raises(AlreadyMoEError):
        apply(RECIPE, model, data=source_for(model))


def test_training_a_dense_model_only(tmp_path):
    model = pico.PICO["llama"]()
    recipe = {"name": "dense", "pipeline": [{"train": {"what": ["*"], "data": "pico", "steps": 2, "batch_size": 2}}]}
    apply(recipe, model, data=source_for(model), output=tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert inspect(tmp_path)["provenance"] == {}


def test_the_router_of_a_packed_model_trains_on(whole, tmp_path):
    _, _, folder = whole
    model = pico.PICO["llava"]().from_pretrained(folder)
    before = bits_of(model.state_dict())
    train = {"what": ["router"], "data": "pico", "steps": 4, "batch_size": 2, "warmup": 0.0, "checkpoint_every": 2}
    recipe = {"name": "on", "pipeline": [{"train": train}]}
    apply(recipe, model, data=source_for(model), output=tmp_path)
    assert model.is_quantized
    loaded = type(model).from_pretrained(tmp_path)
    moved = {name for name, tensor in loaded.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {f"{path}.gate.weight" for path in blocks(loaded)}
    assert torch.equal(logits(loaded), logits(model))
    assert inspect(tmp_path)["stored_bytes"] == inspect(folder)["stored_bytes"]


def test_packed_weights_cannot_be_trained(whole):
    _, _, folder = whole
    model = pico.PICO["llava"]().from_pretrained(folder)
    recipe = {"name": "on", "pipeline": [{"train": {"what": ["routed"], "data": "pico", "steps": 1}}]}
    with pytest.raises(TargetError, match="matches only packed weights"):
        apply(recipe, model, data=source_for(model))
