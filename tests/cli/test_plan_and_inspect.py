from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

import mote_quant

Mote = Callable[..., Any]
ROLE = {"parameters", "bits", "stored_bytes", "resident_bytes"}


def test_plan_as_json(mote: Mote) -> None:
    result = mote("plan", "mote-qwen2.5-3b", "--json")
    assert result.exit_code == 0, result.stderr
    planned = json.loads(result.stdout)
    assert set(planned) == {
        *("paper_gib", "stored_bytes", "resident_bytes", "roles"),
        *("recipe", "mixture_layers", "coverage", "train", "dense", "estimate"),
    }
    assert round(planned["paper_gib"]["experts"], 2) == 3.40
    assert round(planned["dense"]["paper_gib"]["experts"], 2) == 4.54
    assert all(set(weight) == ROLE for weight in planned["roles"].values())
    assert sum(weight["stored_bytes"] for weight in planned["roles"].values()) == planned["stored_bytes"]
    assert len(planned["mixture_layers"]) == 36


def test_plan_says_what_it_will_take(mote: Mote, recipe: str, model: str) -> None:
    found = json.loads(mote("plan", recipe, "-m", model, "--json").stdout)["estimate"]
    assert [part["name"] for part in found["parts"]] == ["loading", "upcycle", "train", "quantize", "saving"]
    assert all(0 <= part["seconds"][0] <= part["seconds"][1] for part in found["parts"])
    assert found["peak_bytes"] == max(part["memory"] for part in found["parts"])
    assert found["rates"]["float32"] > 0
    assert "only pipelines" in found["why_not_streamed"]
    untimed = mote("plan", recipe, "-m", model, "--no-times")
    assert "What it will take, roughly" in untimed.stdout
    assert "All of the model is held in memory" in untimed.stdout
    assert " to " not in untimed.stdout.partition("What it will take")[2].partition("On this machine")[0]


def test_a_plan_without_training_goes_layer_by_layer(mote: Mote, model: str, tmp_path: Path) -> None:
    path = tmp_path / "quantize.yaml"
    path.write_text("name: q\nbits: {ffn: int8}\npipeline: [quantize]\n")
    found = json.loads(mote("plan", path, "-m", model, "--no-times", "--json").stdout)["estimate"]
    assert found["streamed"]
    assert [part["name"] for part in found["parts"]] == ["loading", "quantize, layer by layer"]
    assert found["seconds"] is None
    assert "goes through memory layer by layer" in mote("plan", path, "-m", model, "--no-times").stdout


def test_plan_as_tables(mote: Mote) -> None:
    shown = mote("plan", "mote-qwen2.5-3b").stdout
    rows = {line.split("  ")[0].strip(): line for line in shown.splitlines()}
    assert "3.40 GiB" in rows["experts, as papers count"]
    assert "4.54 GiB" in rows["experts, as papers count"]
    assert {"routed", "shared", "router", "ffn", "embedding"} <= set(rows)
    assert "model.layers.35.mlp" in shown
    assert "(untouched)" in shown
    assert "frozen" in shown


@pytest.mark.parametrize("name", ["{model}", "{model}/config.json"])
def test_plan_for_a_folder_or_a_config(name: str, mote: Mote, recipe: str, model: str) -> None:
    result = mote("plan", recipe, "--model", name.format(model=model), "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["mixture_layers"] == ["model.layers.0.mlp", "model.layers.1.mlp"]


def test_settings_change_the_plan(mote: Mote, recipe: str, model: str) -> None:
    settings = ["bits.shared.format=int8", "pipeline.0.upcycle.experts=3"]
    plain, changed = (
        json.loads(mote("plan", recipe, "-m", model, "--json", *more).stdout)["roles"]
        for more in ([], [part for setting in settings for part in ("--set", setting)])
    )
    assert changed["shared"]["stored_bytes"] > plain["shared"]["stored_bytes"]
    assert 2 * changed["routed"]["parameters"] == 3 * plain["routed"]["parameters"]


def test_more_tokens_than_the_model_takes_are_refused_before_anything_is_opened(
    mote: Mote, tmp_path: Path, recipe: str, model: str
) -> None:
    train = "pipeline.1.train.max_length"
    calibration = "pipeline.2.quantize.calibration"
    context = LlamaConfig.from_pretrained(model).max_position_embeddings
    long = ["--set", f"{train}={context + 1}"]
    long += ["--set", f"pipeline.2={{quantize: {{calibration: {{data: absent.txt, max_length: {context + 2}}}}}}}"]
    why = f"is more than the {context} tokens this model can take; say --set"
    said = [f"{train}: {context + 1} {why} {train}={context}"]
    said.append(said[0].replace(train, f"{calibration}.max_length").replace(str(context + 1), str(context + 2)))
    for command in (["plan"], ["apply", "-o", tmp_path / "out"]):
        result = mote(*command, recipe, "-m", model, *long)
        assert result.exit_code == 2
        assert result.stderr.splitlines() == [f"error: {line}" for line in said]
    assert not (tmp_path / "out").exists()
    fits = [part.replace(f"{context + 1}", f"{context}").replace(f"{context + 2}", f"{context}") for part in long]
    assert mote("plan", recipe, "-m", model, *fits).exit_code == 0


def test_inspect_as_json(mote: Mote, finished: tuple[Any, Path]) -> None:
    result = mote("inspect", finished[1], "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) == {
        *("paper_gib", "stored_bytes", "resident_bytes", "roles"),
        *("kernels", "router", "provenance"),
    }
    assert all(set(weight) == ROLE for weight in found["roles"].values())
    assert found["provenance"]["mote_quant"] == mote_quant.__version__


def test_inspect_as_tables(mote: Mote, finished: tuple[Any, Path]) -> None:
    shown = mote("inspect", finished[1]).stdout
    for part in ("routed", "total", "Routers", "model.layers.1.mlp", "ternary_matmul", "tokens_seen", "transformers"):
        assert part in shown


def test_inspect_says_what_computes_packed_weights_here(mote: Mote, finished: tuple[Any, Path]) -> None:
    found = json.loads(mote("inspect", "--kernels", "--json").stdout)
    assert set(found) == {"kernels", "cpu", "threads"}
    assert set(found["cpu"]) == {"level", "levels", "reason"}
    assert (found["cpu"]["level"] is None) == (found["kernels"]["ternary_matmul"] == "torch")
    shown = mote("inspect", "--kernels").stdout
    for part in ("ternary_experts", "level in force", "levels here"):
        assert part in shown
    both = mote("inspect", finished[1], "--kernels").stdout
    assert "What it weighs" in both
    assert "level in force" in both


def test_inspect_wants_a_folder_or_kernels(mote: Mote) -> None:
    result = mote("inspect")
    assert result.exit_code == 2
    assert "--kernels" in result.stderr


def test_inspect_a_dense_model_too(mote: Mote, model: str) -> None:
    result = mote("inspect", model, "--json")
    assert result.exit_code == 0, result.stderr
    assert "ffn" in json.loads(result.stdout)["roles"]


def test_inspect_says_that_we_did_not_make_a_model(mote: Mote, finished: tuple[Any, Path], model: str) -> None:
    note = "is a dense model that mote-quant did not make; `mote-quant plan RECIPE --model"
    assert f"{model} {note} {model}` says what it would become" in mote("inspect", model).stdout
    assert "did not make" not in mote("inspect", finished[1]).stdout


def test_inspect_refuses_a_file_that_was_cut_short(mote: Mote, finished: tuple[Any, Path]) -> None:
    path = finished[1] / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    try:
        result = mote("inspect", finished[1])
    finally:
        path.write_bytes(whole)
    assert result.exit_code == 2
    assert "model.safetensors" in result.stderr
