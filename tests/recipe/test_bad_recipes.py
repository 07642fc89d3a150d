"""Bad recipes, kind by kind: one located problem a mistake, and never anything but a RecipeError."""

# ruff: noqa: E501 - the table below is read by its rows

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mote_quant.errors import RecipeError
from mote_quant.recipe import load

GOOD = """\
name: good
model: digits-vqa
seed: 3
bits:
  routed: {format: ternary}
  shared: {format: int4, group_size: 128, method: gptq}
  "re:.*lm_head": {format: int8, method: rtn}
  router: float32
pipeline:
  - upcycle: {layers: all, experts: 4, top_k: 1}
  - train: {what: [routed, router], data: digits-vqa, steps: 800}
  - quantize: {calibration: {data: digits-vqa, samples: 256}}
"""

# What is replaced in the good recipe, by what; then line, path and words of the one problem that this makes.
ONE_SLIP: dict[str, tuple[str, str, int, str, str]] = {
    # keys
    "unknown key at the top": ("seed:", "sede:", 3, "sede", "unknown key; did you mean seed?"),
    "unknown key nothing is near": ("seed:", "colour:", 3, "colour", "the keys here are name, description, model"),
    "misspelt required key": ("steps:", "stpes:", 11, "pipeline[1].train.stpes", "unknown key; did you mean steps?"),
    "misspelt top-level required key": ("pipeline:", "pipelines:", 9, "pipelines", "did you mean pipeline?"),
    "another tool's name": ("steps: 800", "steps: 800, lr: 1.0", 11, "pipeline[1].train.lr", "did you mean learning_rate?"),
    "unknown verb": ("upcycle:", "upcicle:", 10, "pipeline[0].upcicle", "unknown key; did you mean upcycle?"),
    "unknown key in a nested mapping": ("samples", "smaples", 12, "pipeline[2].quantize.calibration.smaples", "did you mean samples?"),
    "unknown key in bits": ("group_size", "groupsize", 6, "bits.shared.groupsize", "did you mean group_size?"),
    "setting of another format": ("{format: ternary}", "{format: ternary, method: rtn}", 5, "bits.routed.method", "the keys here are format, granularity"),
    "setting of a short format": ("float32", "{format: float32, group_size: 8}", 8, "bits.router.group_size", "the keys here are format"),
    "missing key": (", data: digits-vqa, steps", ", steps", 11, "pipeline[1].train.data", "missing key"),
    "missing name": ("name: good\n", "\n", 2, "name", "missing key"),
    "missing format": ("{format: int4, ", "{", 6, "bits.shared.format", "missing key"),
    "bits by number of bits": ("{format: int4, ", "{bits: 4, ", 6, "bits.shared.bits", "did you mean format?"),
    "key given twice": ("seed: 3", "name: two", 3, "name", "is given a second time; the first is in line 1"),
    "target given twice": ("router: float32", "routed: float32", 8, "bits.routed", "is given a second time; the first is in line 5"),
    "key read as a boolean": ("router:", "on:", 8, "bits", "a key must be text, not true (YAML reads yes, no, on and off"),
    "key that is a number": ("router:", "3:", 8, "bits", "a key must be text, not the number 3; quote it"),
    "key that is a list": ("router:", "? [a, b]\n  :", 8, "bits", "a key must be text, not a list"),
    # formats and targets
    "bits that do not exist": ("int4", "int7", 6, "bits.shared.format", 'int3, int2, nf4, fp4, ternary, binary, auto, not text "int7"; did you mean'),
    "one bit": ("int4", "int1", 6, "bits.shared.format", "expected one of float32, bfloat16, float16, int8"),
    "short format that does not exist": ("router: float32", "router: flaot32", 8, "bits.router", "did you mean float32?"),
    "format by number": ("router: float32", "router: 16", 8, "bits.router", "expected one of float32, bfloat16"),
    "format that is nothing": ("router: float32", "router:", 8, "bits.router", "not nothing (an empty value is null)"),
    "format that is a list": ("router: float32", "router: [float32]", 8, "bits.router", "not a list"),
    "group of none": ("group_size: 128", "group_size: 0", 6, "bits.shared.group_size", "must be at least 1, or -1 for the whole row, not 0"),
    "group of minus two": ("group_size: 128", "group_size: -2", 6, "bits.shared.group_size", "must be at least 1, or -1"),
    "group size without groups": ("{format: ternary}", "{format: ternary, group_size: 64}", 5, "bits.routed.group_size", "only with granularity: group"),
    "binary misspelt": ("{format: ternary}", "{format: binry}", 5, "bits.routed.format", "did you mean binary?"),
    "packing of a binary": ("{format: ternary}", "{format: binary, packing: 2bit}", 5, "bits.routed.packing", "unknown key"),
    "unknown scales": ("{format: ternary}", "{format: ternary, scales: learnt}", 5, "bits.routed.scales", "did you mean learned?"),
    "training for auto": ("{format: ternary}", "{format: auto, average_bits: 3, method: qat}", 5, "bits.routed.method", "name that format"),
    "training by a backend": ("{format: ternary}", "{format: int4, method: qat, backend: llmcompressor}", 5, "bits.routed.backend", "llmcompressor has no qat"),
    "damping without gptq": ("{format: ternary}", "{format: int4, method: qat, damping: 0.1}", 5, "bits.routed.damping", "only with method: gptq"),
    "ramp without quantization": ("steps: 800", "steps: 800, ternary_ramp: 0.1, fake_quantize: false", 11, "pipeline[1].train.ternary_ramp", "fake_quantize: false leaves out"),
    "unknown method": ("method: rtn", "method: gtpq", 7, 'bits."re:.*lm_head".method', "did you mean gptq?"),
    "unreadable expression": ("re:.*lm_head", "re:(lm_head", 7, 'bits."re:(lm_head"', "is not a regular expression"),
    "empty expression": ("re:.*lm_head", "re:", 7, 'bits."re:"', "an empty target names nothing"),
    "unreadable expression in what": ("[routed,", "['re:*',", 11, "pipeline[1].train.what[0]", "is not a regular expression"),
    "bits that are a list": (GOOD[GOOD.index("bits:") : GOOD.index("pipeline")], "bits: [routed]\n", 4, "bits", "expected a mapping (key: value), not a list"),
    # types
    "text for a whole number": ("800", "many", 11, "pipeline[1].train.steps", 'expected a whole number, not text "many"'),
    "quoted number": ("800", "'800'", 11, "pipeline[1].train.steps", 'expected a whole number, not text "800"'),
    "real for a whole number": ("800", "800.5", 11, "pipeline[1].train.steps", "expected a whole number, not the number 800.5"),
    "exponent for a whole number": ("800", "8e2", 11, "pipeline[1].train.steps", "expected a whole number"),
    "boolean for a whole number": ("800", "yes", 11, "pipeline[1].train.steps", "not true (YAML reads yes, no, on and off"),
    "boolean for a real number": ("800", "800, warmup: on", 11, "pipeline[1].train.warmup", "expected a number, not true (YAML reads"),
    "boolean for an option": ("experts: 4", "shared: no", 10, "pipeline[0].upcycle.shared", "expected one of keep, none, not false (YAML reads"),
    "number for a boolean": ("group_size: 128", "symmetric: 1", 6, "bits.shared.symmetric", "expected true or false, not the number 1"),
    "number for text": ("data: digits-vqa, steps", "data: 5, steps", 11, "pipeline[1].train.data", "expected text, not the number 5; quote it"),
    "date for text": ("name: good", "name: 2026-01-01", 1, "name", "expected text, not the date 2026-01-01; quote it"),
    "empty text": ("model: digits-vqa", "model: ''", 2, "model", "must not be empty"),
    "text for a list": ("[routed, router]", "routed", 11, "pipeline[1].train.what", "expected a list, not text \"routed\"; put it in brackets"),
    "text for a mapping": ("{data: digits-vqa, samples: 256}", "digits-vqa", 12, "pipeline[2].quantize.calibration", "expected a mapping"),
    "number in a list of texts": ("[routed, router]", "[routed, 1]", 11, "pipeline[1].train.what[1]", "expected text, not the number 1"),
    "octal number": ("seed: 3", "seed: 010", 3, "seed", "010: a number with a leading 0 is octal to YAML"),
    "number to base 60": ("seed: 3", "seed: 1:30", 3, "seed", "1:30: YAML reads digits with colons as a number to base 60"),
    "tag": ("seed: 3", "seed: !!python/name:os.system", 3, "seed", "the tag !!python/name:os.system has no place in a recipe"),
    "tag on a mapping": ("bits:", "bits: !!omap", 4, "bits", "the tag !!omap has no place"),
    "tag that does not fit": ("seed: 3", "seed: !!int x", 3, "seed", "x cannot be read as int"),
    # ranges
    "one token to train on": ("800", "800, max_length: 1", 11, "pipeline[1].train.max_length", "must be at least 2, not 1"),
    "one token to calibrate with": ("samples: 256", "max_length: 1", 12, "pipeline[2].quantize.calibration.max_length", "must be at least 2, not 1"),
    "negative seed": ("seed: 3", "seed: -3", 3, "seed", "must be at least 0, not -3"),
    "enormous seed": ("seed: 3", "seed: 99999999999", 3, "seed", "must be at most 4294967295"),
    "no steps": ("800", "0", 11, "pipeline[1].train.steps", "must be at least 1, not 0"),
    "no experts": ("experts: 4", "experts: 0", 10, "pipeline[0].upcycle.experts", "must be at least 1, not 0"),
    "no learning rate": ("800", "800, learning_rate: 0.0", 11, "pipeline[1].train.learning_rate", "must be more than 0, not 0"),
    "not a number": ("800", "800, learning_rate: .nan", 11, "pipeline[1].train.learning_rate", "expected a finite number, not the number nan"),
    "infinity": ("800", "800, balance_loss: .inf", 11, "pipeline[1].train.balance_loss", "expected a finite number, not the number inf"),
    "infinity by exponent": ("800", "800, balance_loss: 1e999", 11, "pipeline[1].train.balance_loss", "expected a finite number"),
    "warm-up in steps": ("800", "800, warmup: 100", 11, "pipeline[1].train.warmup", "must be at most 1, not 100"),
    "unknown layers": ("layers: all", "layers: every-other", 10, "pipeline[0].upcycle.layers", "did you mean every_other?"),
    "negative layer": ("layers: all", "layers: [0, -1]", 10, "pipeline[0].upcycle.layers[1]", "must be at least 0, not -1"),
    "layer named twice": ("layers: all", "layers: [0, 2, 0]", 10, "pipeline[0].upcycle.layers[2]", "0 is named twice"),
    "no layer": ("layers: all", "layers: []", 10, "pipeline[0].upcycle.layers", "give at least one entry"),
    "nothing to train": ("[routed, router]", "[]", 11, "pipeline[1].train.what", "give at least one entry"),
    "the same trained twice": ("[routed, router]", "[routed, routed]", 11, "pipeline[1].train.what[1]", "routed is named twice"),
    "name with a space": ("name: good", "name: very good", 1, "name", "expected a name of letters, digits"),
    "name that is a path": ("name: good", "name: ../good", 1, "name", "expected a name of letters, digits"),
    # parts that do not fit together
    "more experts than there are": ("top_k: 1", "top_k: 5", 10, "pipeline[0].upcycle.top_k", "at most the number of experts (4), not 5"),
    "mix without convex": ("top_k: 1", "mix: 0.5", 10, "pipeline[0].upcycle.mix", "only with combine: convex"),
    "gptq without calibration": ("{calibration: {data: digits-vqa, samples: 256}}", "{}", 6, "bits.shared.method", "give the quantize step a calibration"),
    "bits without quantize": ("  - quantize: {calibration: {data: digits-vqa, samples: 256}}\n", "", 4, "bits", "pipeline has no quantize step"),
    "quantize without bits": (GOOD[GOOD.index("bits:") : GOOD.index("pipeline")], "", 7, "pipeline[2].quantize", "bits names no target"),
    "quantize not last": ("samples: 256}}\n", "samples: 256}}\n  - train: {what: [norm], data: d, steps: 1}\n", 12, "pipeline[2].quantize", "must be the last step"),
    "second quantize": ("pipeline:\n", "pipeline:\n  - quantize: {calibration: {data: d}}\n", 13, "pipeline[3].quantize", "a second quantize step"),
    "second upcycle": ("  - train:", "  - upcycle: {}\n  - train:", 11, "pipeline[1].upcycle", "a second upcycle step"),
    "experts trained before they exist": ("pipeline:\n", "pipeline:\n  - train: {what: [norm, router], data: d, steps: 1}\n", 10, "pipeline[0].train.what[1]", "comes later in pipeline"),
    "shared expert that was not kept": ("top_k: 1", "shared: none", 6, "bits.shared", "keeps no shared expert"),
    "a scale that nothing moves": ("top_k: 1}\n  - train: {what: [routed, router]", "combine: zero_init}\n  - train: {what: [routed]", 11, "pipeline[1].train.what", "zero_init starts at scale 0, which only `router` moves: add router"),
    "two verbs in one entry": ("top_k: 1}", "top_k: 1}\n    quantize: {}", 10, "pipeline[0]", "exactly one of upcycle, train, quantize"),
    "no verb": ("  - train:", "  - {}\n  - train:", 11, "pipeline[1]", "exactly one of upcycle, train, quantize"),
    "entry that is text": ("  - train:", "  - trian\n  - train:", 11, "pipeline[1]", 'expected a mapping (key: value), not text "trian"'),
    "entry that is nothing": ("  - train:", "  -\n  - train:", 11, "pipeline[1]", "not nothing"),
    "pipeline that is a mapping": (GOOD[GOOD.index("  - up") :], "  upcycle: {}\n", 9, "pipeline", "expected a list, not a mapping"),
    "empty pipeline": (GOOD[GOOD.index("pipeline:") :], "pipeline: []\n", 9, "pipeline", "give at least one entry"),
    # extends
    "missing base": ("seed: 3", "extends: mote-digit", 3, "extends", "there is no recipe mote-digit; did you mean mote-digits"),
    "base that is a list": ("seed: 3", "extends: [a, b]", 3, "extends", "expected the name of one recipe, not a list"),
    "base that is a folder": ("seed: 3", "extends: .", 3, "extends", ". is a folder; a recipe is a file"),
    "base that cannot be read as a name": ("seed: 3", "extends: 010", 3, "extends", "octal"),
    "recipe that extends itself": ("seed: 3", "extends: x.yaml", 3, "extends", "goes round in a circle: x.yaml -> x.yaml"),
}  # fmt: skip

# Whole texts that spell no recipe at all: line (none: the file as a whole) and words.
NO_RECIPE: dict[str, tuple[str | bytes, int | None, str]] = {
    "empty file": ("", None, "is empty"),
    "only a comment": ("# later\n", None, "is empty"),
    "only null": ("---\nnull\n", None, "is empty"),
    "a list": ("\n- name: x\n", 2, "a recipe is a mapping with name and pipeline, not a list"),
    "a text": ("name", 1, 'not text "name"'),
    "two documents": ("name: x\n---\nname: y\n", 2, "a second document starts here"),
    "open bracket": ("name: x\npipeline: [\n", 3, "is not valid YAML"),
    "tab": ("name: x\npipeline:\n\t- upcycle\n", 3, "a tab cannot indent; use spaces"),
    "bad indentation": ("name: x\n  seed: 3\n", 2, "is not valid YAML: mapping values are not allowed here"),
    "undefined alias": ("name: x\nseed: *other\n", 2, "is not valid YAML: found undefined alias"),
    "escape out of range": ('name: "\\UFFFFFFFF"\n', 1, "is not valid YAML"),
    "control character": ("name: x\nseed: \x07\n", 2, "the character #x0007 cannot stand in a text file"),
    "not UTF-8": (b"name: x\nmodel: \xff\xfe\n", 2, "is not UTF-8 text"),
    "safetensors": (b"\x10\x00\x00\x00\x00\x00\x00\x00{}" + b"\x93" * 90, 1, "is not UTF-8 text"),
    "large file": (b"#" * 1_000_001, None, "is larger than 1000000 bytes"),
    "deep nesting": ("a: " + "[" * 60 + "]" * 60, 1, "is nested more than 40 levels deep"),
    "bottomless nesting": ("[" * 20_000, 1, "is nested more than 40 levels deep"),
    "tag on the whole": ("!!set {a, b}\n", 1, "the tag !!set has no place in a recipe"),
    "aliases that multiply": (
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdef", "bcdefg", strict=True)),
        5,
        "has more than 20000 values",
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def problems(source: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load(source)
    assert caught.value.exit_code == 2
    assert all("\n" not in line and "pydantic" not in line and "Input" not in line for line in caught.value.problems)
    return caught.value.problems


def in_file(text: str) -> list[str]:
    Path("x.yaml").write_text(text, encoding="utf-8")
    return problems("x.yaml")


def test_the_good_recipe_is_good() -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    assert load("x.yaml").name == "good"


@pytest.mark.parametrize("kind", ONE_SLIP)
def test_one_slip_is_one_located_problem(kind: str) -> None:
    old, new, line, path, words = ONE_SLIP[kind]
    assert GOOD.count(old) >= 1
    [problem] = in_file(GOOD.replace(old, new, 1))
    assert problem.startswith(f"x.yaml:{line}: {path}: ")
    assert words in problem


@pytest.mark.parametrize("what", [["routed"], ["norm", "routed"], ["routed", "shared"]])
@pytest.mark.parametrize("opener", ["router", "*", "re:gate", "Router"])
def test_once_the_scale_of_zero_init_can_move_experts_may_train_alone(what: list[str], opener: str) -> None:
    def train(*targets: str) -> dict[str, Any]:
        return {"train": {"what": [*targets], "data": "d", "steps": 1}}

    values = {"name": "x", "pipeline": [{"upcycle": {"combine": "zero_init"}}, train(*what)]}
    assert "zero_init" in problems(values)[0]
    values["pipeline"].insert(1, train(opener))  # type: ignore[attr-defined]
    assert load(values)
    assert load({**values, "pipeline": [{"upcycle": {"combine": "zero_init"}}, train(opener, *what)]})
    assert load({**values, "pipeline": [{"upcycle": {}}, train(*what)]})


@pytest.mark.parametrize("kind", NO_RECIPE)
def test_what_is_no_recipe_is_one_located_problem(kind: str) -> None:
    content, line, words = NO_RECIPE[kind]
    Path("x.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    [problem] = problems("x.yaml")
    assert problem.startswith("x.yaml: " if line is None else f"x.yaml:{line}: ")
    assert words in problem


def test_there_are_many_kinds() -> None:
    assert len(ONE_SLIP) + len(NO_RECIPE) >= 100


def test_all_mistakes_are_told_at_once_in_the_order_of_the_file() -> None:
    text = (
        GOOD.replace("seed: 3", "sede: 3").replace("int4", "int7").replace("top_k: 1", "top_k: 5").replace("800", "x")
    )
    found = in_file(
        text.replace("router: float32", "routed: float32").replace("calibration: {", "calibration: {sample: 2, ")
    )
    assert [line.split(": ")[0] for line in found] == [f"x.yaml:{number}" for number in (3, 6, 8, 10, 11, 12)]


def test_a_rule_between_parts_is_told_beside_mistakes_elsewhere() -> None:
    found = in_file(GOOD.replace("seed: 3", "seed: x").replace("{calibration: {data: digits-vqa, samples: 256}}", "{}"))
    assert [line.split(": ")[1] for line in found] == ["seed", "bits.shared.method"]


def test_what_follows_from_a_slip_is_not_a_second_problem() -> None:
    assert len(in_file(GOOD.replace("quantize:", "quantise:"))) == 1
    assert len(in_file(GOOD.replace("upcycle:", "upcicle:"))) == 1
    assert len(in_file(GOOD.replace("calibration:", "calibation:"))) == 1
    baseless = GOOD.replace("seed: 3", "extends: nowhere.yaml")
    assert len(in_file(baseless.replace("name: good", ""))) == 1
    assert len(in_file(baseless[: baseless.index("bits:")] + baseless[baseless.index("pipeline:") :])) == 1
    assert len(in_file(baseless.replace("  - upcycle: {layers: all, experts: 4, top_k: 1}\n", ""))) == 1


def test_an_error_in_a_base_is_placed_there() -> None:
    Path("base.yaml").write_text("name: b\nsteps: 3\nseed: [\n", encoding="utf-8")
    assert in_file(GOOD.replace("seed: 3", "extends: base.yaml")) == [
        "base.yaml:4: is not valid YAML: expected the node content, but found '<stream end>'"
    ]
    Path("base.yaml").write_text("extends: x.yaml\n", encoding="utf-8")
    assert in_file(GOOD.replace("seed: 3", "extends: base.yaml")) == [
        "base.yaml:1: extends: goes round in a circle: x.yaml -> base.yaml -> x.yaml"
    ]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("mote-digit", "there is no recipe mote-digit; did you mean mote-digits or"),
        ("recipes/mote-digits.yml", "there is no recipe recipes/mote-digits.yml; did you mean mote-digits"),
        ("y.yaml", "there is no recipe y.yaml; did you mean x.yaml?"),
        ("zzzzzzzz", "there is no recipe zzzzzzzz; shipped ones are listed by `mote-quant recipes list`"),
        ("", "there is no recipe"),
        ("a\0b", "there is no recipe"),
        ("x" * 5000, "there is no recipe"),
        (".", ". is a folder; a recipe is a file"),
        (Path("nowhere"), "there is no recipe nowhere"),
        (5, "<recipe>: a recipe is a path, a shipped name, a mapping or a Recipe, not the number 5"),
        (None, "<recipe>: a recipe is a path"),
        ([{"name": "x"}], "<recipe>: a recipe is a path, a shipped name, a mapping or a Recipe, not a list"),
    ],
)
def test_a_source_that_is_none(source: Any, words: str) -> None:
    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    [problem] = problems(source)
    assert words in problem


def test_a_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    Path("x.yaml").write_text(GOOD, encoding="utf-8")
    monkeypatch.setattr(Path, "open", refuse)
    assert problems("x.yaml") == ["x.yaml: cannot be read: Permission denied"]


def test_mappings_are_told_by_path_alone() -> None:
    loop: dict[str, Any] = {"name": "x"}
    loop["bits"] = loop
    assert problems({"name": "x", "pipeline": [{"upcycle": {"experts": "4"}}]}) == [
        '<recipe>: pipeline[0].upcycle.experts: expected a whole number, not text "4"'
    ]
    assert any("is nested more than 40 levels deep" in line for line in problems(loop))
    assert problems({"name": "x", 5: 1, "pipeline": ["upcycle"]}) == ["<recipe>: a key must be text, not the number 5"]
    assert problems({"name": "x", "model": object(), "pipeline": ["upcycle"]}) == [
        "<recipe>: model: expected text, not a Python object; quote it if it is meant as text"
    ]
    assert problems({"name": "x", "extends": "nowhere", "pipeline": ["upcycle"]})[0].startswith(
        "<recipe>: extends: there is no"
    )
