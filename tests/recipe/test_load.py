"""Loading what is sound: sources, YAML's ways of writing, bases."""

from __future__ import annotations

import enum
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import yaml

from mote_quant.errors import RecipeError
from mote_quant.recipe import FloatBits, IntegerBits, Recipe, TernaryBits, dump, load
from mote_quant.recipe.schema import BinaryBits, Quantize, Step, Train, Upcycle, trains

GOOD = """\
name: good
bits:
  routed: {format: ternary}
  shared: {format: int4, group_size: 128, method: gptq}
  "re:.*lm_head": {format: int8, method: rtn}
  router: float32
pipeline:
  - upcycle: {layers: all, experts: 4, top_k: 1}
  - train: {what: [routed, router], data: digits-vqa, steps: 800, learning_rate: 1e-3}
  - quantize: {calibration: {data: digits-vqa, samples: 256}}
"""


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str, name: str = "x.yaml") -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text, encoding="utf-8")
    return name


def test_a_file_loads_with_order_short_forms_and_defaults() -> None:
    recipe = load(write(GOOD))
    assert list(recipe.bits) == ["routed", "shared", "re:.*lm_head", "router"]
    assert recipe.bits["routed"] == TernaryBits(format="ternary")
    assert recipe.bits["shared"] == IntegerBits(format="int4", group_size=128, method="gptq")
    assert recipe.bits["router"] == FloatBits(format="float32")
    assert [step.name for step in recipe.pipeline] == ["upcycle", "train", "quantize"]
    upcycle, train, quantize = (step.config for step in recipe.pipeline)
    assert isinstance(upcycle, Upcycle)
    assert upcycle.combine == "additive"
    assert isinstance(train, Train)
    assert (train.learning_rate, train.schedule, train.max_length) == (0.001, "cosine", None)
    assert isinstance(quantize, Quantize)
    assert quantize.calibration is not None
    assert quantize.calibration.samples == 256


def test_all_kinds_of_source_give_the_same_recipe(tmp_path: Path) -> None:
    name = write(GOOD)
    recipe = load(name)
    assert load(Path(name)) == recipe
    assert load(tmp_path / name) == recipe
    assert load(yaml.safe_load(GOOD)) == recipe
    assert load(MappingProxyType(yaml.safe_load(GOOD))) == recipe
    assert load(recipe) is recipe


def test_a_shipped_recipe_loads_by_name_but_a_file_goes_first() -> None:
    assert load("mote-digits") == load("mote-digits.yaml")
    write(GOOD, "mote-digits.yaml")
    assert load("mote-digits.yaml").name == "good"
    assert load("mote-digits").name == "mote-digits"


def test_values_of_python_are_taken_for_the_plain_ones_they_are() -> None:
    class Source(enum.StrEnum):
        DIGITS = "digits-vqa"

    train = {"what": ("routed",), "data": Source.DIGITS, "steps": 3, "learning_rate": np.float64(0.5)}
    recipe = load(
        {"name": "x", "model": Path("some/model"), "pipeline": [{"upcycle": Upcycle(experts=2)}, {"train": train}]}
    )
    assert recipe.model == str(Path("some/model"))
    assert recipe.pipeline[0].config == Upcycle(experts=2)
    assert type(recipe.pipeline[1].config.data) is str  # type: ignore[union-attr]
    assert load(yaml.safe_load(dump(recipe))) == recipe


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "0.001", ".1e-2", "1.0e-3", "10e-4"])
def test_numbers_that_yaml_1_1_reads_as_text_are_numbers(text: str) -> None:
    recipe = load(write(GOOD.replace("1e-3", text)))
    assert recipe.pipeline[1].config.learning_rate == 0.001  # type: ignore[union-attr]


def test_a_whole_number_will_do_for_a_real_one() -> None:
    recipe = load({"name": "x", "pipeline": [{"upcycle": {"noise": 1, "combine": "convex", "mix": 0}}]})
    assert recipe.pipeline[0].config.mix == 0.0  # type: ignore[union-attr]


@pytest.mark.parametrize("entry", ["- upcycle: {}", "- upcycle:", "- upcycle"])
def test_a_verb_alone_takes_its_defaults(entry: str) -> None:
    assert load(write(f"name: x\npipeline:\n  {entry}\n")).pipeline == [Step(upcycle=Upcycle())]


def test_aliases_merge_keys_and_a_byte_order_mark_are_fine() -> None:
    text = """\
\ufeffname: x
bits:
  shared: &eight {format: int8, group_size: 64}
  attention: *eight
  head: {<<: *eight, group_size: -1, symmetric: no}
pipeline: [quantize]
"""
    recipe = load(write(text))
    assert recipe.bits["attention"] == recipe.bits["shared"]
    assert recipe.bits["head"] == IntegerBits(format="int8", group_size=-1, symmetric=False)


def test_merge_keys_mean_what_safe_load_makes_of_them() -> None:
    text = """\
name: x
pipeline:
  - upcycle:
      <<: [{experts: 8, top_k: 2}, {experts: 16, noise: 0.5}]
      top_k: 3
      <<: {noise: 0.25}
"""
    assert load(write(text)) == load(yaml.safe_load(text))
    assert load("x.yaml").pipeline[0].config == Upcycle(experts=8, top_k=3, noise=0.25)


def test_layers_are_a_name_or_a_list() -> None:
    recipe = load({"name": "x", "pipeline": [{"upcycle": {"layers": [3, 1]}}]})
    assert recipe.pipeline[0].config.layers == [3, 1]  # type: ignore[union-attr]


BASE = """\
name: base
seed: 7
bits:
  router: float32
  routed: {format: int4, group_size: 64, method: gptq}
  head: int8
pipeline:
  - upcycle: {shared: none, top_k: 2}
  - quantize: {calibration: {data: d}}
"""


def test_extends_merges_mappings_own_keys_first_and_replaces_lists() -> None:
    write(BASE, "base.yaml")
    recipe = load(write("name: own\nextends: base.yaml\nbits:\n  '*.bias': float16\n  routed: {format: int3}\n"))
    assert (recipe.name, recipe.seed) == ("own", 7)
    assert list(recipe.bits) == ["*.bias", "routed", "router", "head"]
    assert recipe.bits["routed"] == IntegerBits(format="int3", group_size=64, method="gptq")
    assert recipe.pipeline == load("base.yaml").pipeline
    shorter = load(write("extends: base.yaml\npipeline:\n  - quantize: {calibration: {data: e}}\n", "y.yaml"))
    assert len(shorter.pipeline) == 1


@pytest.mark.parametrize(
    ("base", "own", "merged"),
    [
        ("int4", "{group_size: 32}", IntegerBits(format="int4", group_size=32)),
        ("{format: int4, group_size: 32}", "int3", IntegerBits(format="int3")),
        ("{format: int4, group_size: 32}", "{format: int3}", IntegerBits(format="int3", group_size=32)),
        (
            "{format: int4, group_size: 32}",
            "{symmetric: false}",
            IntegerBits(format="int4", group_size=32, symmetric=False),
        ),
        ("{format: int4, group_size: 32}", "{format: ternary}", TernaryBits(format="ternary")),
        ("{format: ternary, granularity: channel}", "{format: int3, method: rtn}", IntegerBits(format="int3")),
        ("{format: ternary, packing: base3, scales: learned}", "{format: binary}", BinaryBits(format="binary")),
        ("{format: int4, group_size: 32}", "float32", FloatBits(format="float32")),
    ],
)
def test_extends_merges_bits_whatever_their_form(base: str, own: str, merged: object) -> None:
    write(f"name: base\nbits:\n  routed: {base}\npipeline: [upcycle, quantize]\n", "base.yaml")
    assert load(write(f"extends: base.yaml\nbits:\n  routed: {own}\n")).bits["routed"] == merged


def test_extends_goes_through_folders_chains_and_shipped_names() -> None:
    write(BASE, "a/base.yaml")
    write("extends: ../a/base.yaml\nseed: 8\n", "b/middle.yaml")
    assert load(write("extends: b/middle.yaml\nname: top\n")).seed == 8
    assert load(write("extends: mote-digits\nname: mine\n", "mote-digits.yaml")).name == "mine"
    assert load({"extends": "b/middle.yaml", "name": "mapping"}).seed == 8


def test_a_mistake_in_a_base_is_placed_in_the_base_unless_the_file_mends_it() -> None:
    write(BASE.replace("seed: 7", "seed: -7"), "base.yaml")
    with pytest.raises(RecipeError) as caught:
        load(write("name: own\nextends: base.yaml\n"))
    assert caught.value.problems == ["base.yaml:2: seed: must be at least 0, not -7"]
    assert load(write("name: own\nextends: base.yaml\nseed: 1\n")).seed == 1


def test_places_are_said_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("name: 5\npipeline: [upcycle]\n", "sub/x.yaml")
    for source in ("sub/x.yaml", "./sub/../sub/x.yaml", tmp_path / "sub" / "x.yaml"):
        with pytest.raises(RecipeError, match=r"^sub/x\.yaml:1: name: expected text"):
            load(source)
    monkeypatch.chdir(tmp_path / "sub")
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "sub" / "x.yaml")
    assert str(caught.value).startswith("x.yaml:1: ")


def test_dump_writes_defaults_and_drops_what_has_no_meaning() -> None:
    text = dump(load(write(GOOD)))
    values = yaml.safe_load(text)
    assert values["bits"]["router"] == "float32"
    assert values["bits"]["routed"]["granularity"] == "tensor"
    assert "group_size" not in values["bits"]["routed"]
    assert "mix" not in values["pipeline"][0]["upcycle"]
    assert values["pipeline"][1]["train"]["schedule"] == "cosine"
    assert load(write(text, "again.yaml")) == load("x.yaml")
    assert dump(load("again.yaml")) == text


def test_a_default_written_out_is_the_same_recipe() -> None:
    assert dump(load(write(GOOD.replace("experts: 4", "experts: 4, noise: 0.0")))) == dump(load(write(GOOD, "y.yaml")))


def test_a_recipe_is_frozen() -> None:
    recipe = load(write(GOOD))
    with pytest.raises(ValueError, match="frozen"):
        recipe.name = "other"  # type: ignore[misc]
    assert isinstance(recipe, Recipe)


@pytest.mark.parametrize("bits", ["ternary", "binary", {"format": "int3", "method": "qat"}])
def test_what_is_trained_needs_no_quantize_step(bits: object) -> None:
    """Up-cycling carries it out; the model is left with its latent weights, to be trained on."""
    recipe = load({"name": "latent", "bits": {"routed": bits}, "pipeline": [{"upcycle": {}}]})
    assert trains(recipe.bits["routed"])
    with pytest.raises(RecipeError, match="no quantize step"):
        load({"name": "latent", "bits": {"routed": bits, "shared": "int3"}, "pipeline": [{"upcycle": {}}]})


def test_ternary_may_stand_beside_a_quantize_step_alone() -> None:
    """For a model that was up-cycled and trained elsewhere; whether it has experts is for the plan to say."""
    bits = {"routed": "ternary", "shared": "int4"}
    assert load({"name": "tail", "bits": bits, "pipeline": ["quantize"]}).bits["routed"].format == "ternary"
