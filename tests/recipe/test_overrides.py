"""`--set path=value`: over a file, a mapping and a Recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mote_quant.errors import RecipeError
from mote_quant.recipe import FloatBits, IntegerBits, TernaryBits, load

TEXT = """\
name: x
extends: base.yaml
bits:
  routed: {format: ternary, granularity: channel}
  shared: {format: int4, group_size: 128}
  "re:.*lm_head": int8
  router: float32
pipeline:
  - upcycle: {experts: 4}
  - train: {what: [routed, router], data: d, steps: 800}
  - quantize: {}
"""


@pytest.fixture(autouse=True)
def recipe_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("seed: 5\ndescription: base\n", encoding="utf-8")
    Path("x.yaml").write_text(TEXT, encoding="utf-8")


def problems(*overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load("x.yaml", overrides)
    return caught.value.problems


def settings(index: int, *overrides: str) -> Any:
    return load("x.yaml", overrides).pipeline[index].config


def test_an_override_goes_before_the_file_and_the_file_before_its_base() -> None:
    assert load("x.yaml").seed == 5
    assert load("x.yaml", ["seed=3"]).seed == 3
    assert load("x.yaml", ["seed=3", "seed=4"]).seed == 4
    assert load("x.yaml", ["name=y"]).name == "y"
    assert load("x.yaml", ["name=y"]).description == "base"


@pytest.mark.parametrize("path", ["pipeline.1.train.steps", "pipeline[1].train.steps", 'pipeline."1".train.steps'])
def test_list_entries_are_numbered(path: str) -> None:
    assert settings(1, f"{path}=20").steps == 20


def test_values_are_yaml() -> None:
    assert settings(1, "pipeline.1.train.what=[router]").what == ["router"]
    assert settings(1, "pipeline.1.train.what.1=shared").what == ["routed", "shared"]
    assert settings(1, "pipeline.1.train.learning_rate=1e-3").learning_rate == 0.001
    assert settings(1, "pipeline.1.train={what: [router], data: e, steps: 1}").data == "e"
    assert settings(2, "pipeline.2.quantize.calibration.data=a=b.txt").calibration.data == "a=b.txt"
    assert settings(1, "pipeline.1.train.max_length=null").max_length is None
    assert load("x.yaml", ["description='a: b'"]).description == "a: b"


@pytest.mark.parametrize(
    ("override", "target", "spec"),
    [
        ("bits.shared.format=int3", "shared", IntegerBits(format="int3", group_size=128)),
        ("bits.shared=int3", "shared", IntegerBits(format="int3")),
        ("bits.shared={format: int2, group_size: 8}", "shared", IntegerBits(format="int2", group_size=8)),
        ("bits.router.format=bfloat16", "router", FloatBits(format="bfloat16")),
        ('bits."re:.*lm_head".group_size=64', "re:.*lm_head", IntegerBits(format="int8", group_size=64)),
        ("bits.'re:.*lm_head'.format=int4", "re:.*lm_head", IntegerBits(format="int4")),
        ("bits.routed.format=int3", "routed", IntegerBits(format="int3")),
        ("bits.routed.granularity=tensor", "routed", TernaryBits(format="ternary", granularity="tensor")),
        ("bits.attention.format=int8", "attention", IntegerBits(format="int8")),
    ],
)
def test_bits_can_be_set_in_every_form(override: str, target: str, spec: object) -> None:
    assert load("x.yaml", [override]).bits[target] == spec


def test_a_new_target_comes_first_and_a_known_one_keeps_its_place() -> None:
    recipe = load("x.yaml", ["bits.attention=int8", "bits.shared.format=int8"])
    assert list(recipe.bits) == ["attention", "routed", "shared", "re:.*lm_head", "router"]


def test_mappings_and_recipes_take_overrides_too() -> None:
    mapping = {"name": "m", "bits": {"routed": "int4"}, "pipeline": ["upcycle", {"quantize": {}}]}
    recipe = load(mapping, ["bits.routed.group_size=32"])
    assert recipe.bits["routed"] == IntegerBits(format="int4", group_size=32)
    assert mapping["bits"] == {"routed": "int4"}
    again = load(recipe, ["bits.routed.format=int3", "seed=1"])
    assert again.bits["routed"] == IntegerBits(format="int3", group_size=32)
    assert recipe.seed == 0


def test_defaults_of_a_recipe_do_not_stand_in_the_way_of_an_override() -> None:
    recipe = load({"name": "m", "pipeline": [{"upcycle": {"combine": "convex"}}]})
    assert load(recipe, ["pipeline.0.upcycle.combine=zero_init"]).pipeline[0].config.combine == "zero_init"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("pipeline.1.train.steps=x", 'pipeline[1].train.steps: expected a whole number, not text "x"'),
        ("pipeline.1.train.stesp=20", "pipeline[1].train.stesp: unknown key; did you mean steps?"),
        ("bits.shared.format=int7", "bits.shared.format: expected one of float32"),
        ("bits.shared.group_size=0", "bits.shared.group_size: must be at least 1"),
        ("sed=3", "sed: unknown key; did you mean seed?"),
        ("train.steps=20", "train: unknown key; did you mean pipeline.1.train.steps?"),
        ("upcycle={}", "upcycle: unknown key; did you mean pipeline.0.upcycle?"),
        ("trian.steps=20", "trian: unknown key; the keys here are name"),
        ("seed", "expected path=value"),
        ("=3", "expected path=value; the path is missing"),
        ("", "expected path=value"),
        ("bits..shared=int3", "expected path=value"),
        (".seed=3", "expected path=value"),
        ("seed.=3", "expected path=value"),
        ('bits."re:.format=int3', "expected path=value"),
        ("pipeline[x].train.steps=3", "expected path=value"),
        ("pipeline.3.train.steps=1", "pipeline: is a list with entries 0 to 2; it has no 3"),
        ("pipeline.-1.train.steps=1", "pipeline: is a list with entries 0 to 2; it has no -1"),
        (
            "pipeline.train.steps=1",
            "pipeline: is a list with entries 0 to 2; it has no train; did you mean pipeline.1.train?",
        ),
        ("seed.x=3", "seed: is the number 5 and has no x"),
        ("seed=", "seed: expected a whole number, not nothing"),
        ("seed=[", "is not valid YAML"),
        ("seed=1\n---\n2", "a second document starts here"),
        ("bits.shared={format: int4, format: int3}", "bits.shared.format: is given a second time"),
        ("seed=!!python/name:os.system", "seed: the tag !!python/name:os.system has no place"),
        ("extends=other.yaml", "extends belongs in a file"),
        ("pipeline.0=", "pipeline[0]: expected a mapping (key: value), not nothing"),
    ],
)
def test_a_bad_override_is_placed_at_itself(override: str, expected: str) -> None:
    [found] = problems(override)
    assert found.startswith(f"--set {override.replace(chr(10), ' ')}: {expected}")


def test_bad_overrides_and_a_bad_file_are_reported_together() -> None:
    Path("x.yaml").write_text(TEXT.replace("experts: 4", "experts: no"), encoding="utf-8")
    found = problems("seed=x", "nonsense", "pipeline.9.train.steps=1")
    assert len(found) == 4
    assert sum(line.startswith("--set ") for line in found) == 3
    assert any(
        line.startswith("x.yaml:9: pipeline[0].upcycle.experts: expected a whole number, not false") for line in found
    )


def test_an_override_mends_a_file() -> None:
    Path("x.yaml").write_text(TEXT.replace("steps: 800", "steps: lots"), encoding="utf-8")
    assert problems() == ['x.yaml:10: pipeline[1].train.steps: expected a whole number, not text "lots"']
    assert settings(1, "pipeline.1.train.steps=8").steps == 8
