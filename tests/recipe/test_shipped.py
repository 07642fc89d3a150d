"""Every recipe that comes with the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from mote_quant.recipe import Recipe, dump, load, shipped
from mote_quant.recipe.schema import Quantize, Train, Upcycle

NAMES = sorted(shipped())
EMBEDDED = {
    *("digits-dense", "mote-digits", "moe-digits", "moe-digits-int4", "moe-digits-int3"),
    *("text-dense", "mote-text", "moe-text", "moe-text-int3"),
}
POST_TRAINING = {f"ptq-{name}" for name in ("rtn", "gptq", "awq", "hqq", "nf4")}
POST_TRAINING |= {f"ptq-{name}" for name in ("gptqmodel", "llmcompressor", "bitsandbytes")}
AUTO = {"mote-text-auto", "moe-text-auto"}
BASES = ("qwen2.5-0.5b", "qwen2.5-1.5b", "qwen2.5-3b", "llava-qwen2.5-1.5b")
ANY = {"mote"}
"""For whatever model is named."""
REAL = {name for base in BASES for name in (f"mote-{base}", f"moe-{base}", f"moe-{base}-int3")}


def parts(recipe: Recipe) -> tuple[Upcycle, Train, Quantize]:
    upcycle, train, quantize = (step.config for step in recipe.pipeline)
    assert isinstance(upcycle, Upcycle)
    assert isinstance(train, Train)
    assert isinstance(quantize, Quantize)
    return upcycle, train, quantize


def test_the_catalogue() -> None:
    assert set(NAMES) == EMBEDDED | REAL | POST_TRAINING | AUTO | ANY


@pytest.mark.parametrize("name", NAMES)
def test_it_loads_under_its_own_name_says_what_it_is_and_dumps(name: str) -> None:
    recipe = load(name)
    assert recipe.name == name
    text = shipped()[name].read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert max(map(len, text.splitlines())) <= 120
    assert yaml.safe_load(text)["description"] == recipe.description != ""
    assert load(yaml.safe_load(dump(recipe))) == recipe


@pytest.mark.parametrize("name", sorted(ANY | {name for name in NAMES if name.startswith("mote-")}))
def test_mote_is_one_frozen_int4_shared_and_four_ternary_experts_top_1_in_every_layer(name: str) -> None:
    recipe = load(name)
    upcycle, train, quantize = parts(recipe)
    assert (upcycle.layers, upcycle.experts, upcycle.top_k, upcycle.shared) == ("all", 4, 1, "keep")
    assert (upcycle.combine, upcycle.init) == ("additive", "copy")
    assert train.what == ["routed", "router"]
    assert train.balance_loss == 0.01
    formats = {target: spec.format for target, spec in recipe.bits.items()}
    if name in AUTO:
        assert formats.pop("shared") == "auto"
        formats["shared"] = "int4"
    assert formats.pop("*", "bfloat16") == "bfloat16"
    if name in ANY:
        assert recipe.model is None
        assert formats.pop("attention") == "int8"
    assert formats == {
        "routed": "ternary",
        "shared": "int4",
        "router": "float32",
    }
    assert quantize.calibration is not None


@pytest.mark.parametrize("name", sorted(name for name in NAMES if name.startswith("moe-")))
def test_the_baseline_is_four_experts_top_2_in_every_layer_and_none_shared(name: str) -> None:
    recipe = load(name)
    upcycle, train, _ = parts(recipe)
    assert (upcycle.layers, upcycle.experts, upcycle.top_k, upcycle.shared) == ("all", 4, 2, "none")
    assert train.what == ["routed", "router"]
    bits = re.search(r"int\d", name)
    routed = recipe.bits.get("routed", recipe.bits.get("*"))
    assert routed is not None
    if name in AUTO:
        assert routed.format == "auto"
        return
    assert routed.format == (bits[0] if bits else "float32" if "text" in name else "bfloat16")


@pytest.mark.parametrize("name", ["digits", "text", *BASES])
def test_both_contenders_see_the_same_data_steps_and_seed(name: str) -> None:
    mote, moe = load(f"mote-{name}"), load(f"moe-{name}")
    ours, theirs = parts(mote)[1], parts(moe)[1]
    assert mote.seed == moe.seed
    assert (mote.model, ours.data, ours.steps, ours.batch_size, ours.max_length) == (
        *(moe.model, theirs.data, theirs.steps, theirs.batch_size),
        theirs.max_length,
    )
    assert ours.gradient_accumulation == theirs.gradient_accumulation


def test_a_checkout_and_a_wheel_are_both_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "mote_quant"
    (package / "recipes").mkdir(parents=True)
    (package / "recipes" / "only.yaml").write_text("name: only\npipeline: [upcycle]\n", encoding="utf-8")
    monkeypatch.setattr("mote_quant.recipe.catalogue._PACKAGE", package)
    assert list(shipped()) == ["only"]
    assert load("only").name == "only"
    monkeypatch.setattr("mote_quant.recipe.catalogue._PACKAGE", tmp_path / "nowhere" / "mote_quant")
    assert shipped() == {}
