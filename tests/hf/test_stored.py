"""`config.json` and `report.json` of a saved model, altered in every way: an ArtifactError that says where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from mote_quant.errors import ArtifactError
from mote_quant.hf.stored import fingerprint
from mote_quant.inspection import inspect
from tests import pico
from tests.mixtures import INT4_SHARED, TERNARY, quantize_it, upcycled

Values = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    model = pico.PICO["llama"]()
    quantize_it(model, upcycled(model, TERNARY | INT4_SHARED | {"head": "bfloat16"}))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    for path in saved.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def alter(folder: Path, change: Callable[[Values], Any], *, rehash: bool = True) -> None:
    """Change the `quantization_config`; with `rehash`, as somebody would who also mends its sha256."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    stored = config["quantization_config"]
    change(stored)
    if rehash and isinstance(stored.get("structure"), dict):
        stored["structure_sha256"] = fingerprint(stored["structure"])
    path.write_text(json.dumps(config))


def of_structure(change: Callable[[Values], Any]) -> Callable[[Values], Any]:
    return lambda stored: change(stored["structure"])


def of_layout(**values: Any) -> Callable[[Values], Any]:
    return lambda stored: stored["structure"]["layouts"][0].update(values)


def first_format_in_base3(stored: Values) -> None:
    stored["structure"]["packed"][0]["spec"] = {"format": "ternary", "packing": "base3"}
    stored["version"] = 1


def packed_alike(format: str) -> Callable[[Values], Any]:
    return lambda stored: stored["structure"]["packed"][0]["spec"].update(format=format)


DAMAGES: dict[str, tuple[Callable[[Values], Any], str]] = {
    "no structure": (lambda stored: stored.pop("structure"), r"structure cannot be read: missing key"),
    "no layouts": (of_structure(lambda s: s.pop("layouts")), r"structure\.layouts cannot be read: missing key"),
    "structure a list": (lambda stored: stored.update(structure=[1]), r"structure cannot be read: expected a mapping"),
    "unknown module": (of_structure(lambda s: s["packed"][0]["modules"].append("model.nowhere")), "nowhere"),
    "module that is no linear": (of_structure(lambda s: s["packed"][0]["modules"].append("model.norm")), "not fit"),
    "cast of no linear": (of_structure(lambda s: s["cast"].append("model.norm")), "not fit this model"),
    "cast that is text": (of_structure(lambda s: s.update(cast="lm_head")), r"structure\.cast cannot .*a list"),
    "unknown parameter": (of_structure(lambda s: s["dtypes"].update(float32=["x.y"])), "no parameter x.y"),
    "unknown type": (of_structure(lambda s: s.update(dtypes={"float99": ["lm_head.weight"]})), "no type float99"),
    "type that is none": (of_structure(lambda s: s.update(dtypes={"nn": ["lm_head.weight"]})), "no type nn"),
    "unknown format": (packed_alike("int7"), r"packed\.0\.spec\.format cannot be read: .*int7"),
    "float format": (packed_alike("bfloat16"), r"packed\.0"),
    "unknown layer": (of_layout(path="model.layers.9.mlp"), "not fit this model"),
    "unknown child": (of_layout(up="upward"), "not fit this model"),
    "same layer twice": (of_structure(lambda s: s["layouts"].append(s["layouts"][0])), "not fit this model"),
    "unknown combination": (of_layout(combine="sum"), r"layouts\.0\.combine cannot be read: expected one of"),
    "unknown kind": (of_layout(kind="round"), r"layouts\.0\.kind cannot be read: expected one of"),
    "more than all experts": (of_layout(top_k=5), r"layouts\.0 .*"),
    "no expert": (of_layout(experts=0), r"layouts\.0\.experts cannot be read: must be at least 1"),
    "experts in words": (of_layout(experts="four"), r"layouts\.0\.experts cannot be read: expected a whole number"),
    "unknown key of a layout": (of_layout(capacity=2), r"layouts\.0\.capacity cannot be read: unknown key"),
    "unknown granularity": (of_layout(qat={"up_proj": {"format": "ternary", "granularity": "row"}}), "granularity"),
    "version in words": (lambda stored: stored.update(version="x"), "version cannot be read: expected a whole number"),
    "base 3 of the first version": (
        first_format_in_base3,
        "base-3 weights are of mote format 1.*apply the recipe again",
    ),
    "version to come": (lambda stored: stored.update(version=99), "mote format 99.*upgrade mote-quant"),
    "unknown key": (lambda stored: stored.update(colour="red"), "colour cannot be read: unknown key"),
    "files a list": (lambda stored: stored.update(files=[1]), "files cannot be read: expected a mapping"),
    "file without a size": (lambda stored: stored["files"]["model.safetensors"].pop("bytes"), "bytes .*missing key"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_refused_by_place(copied: Path, damage: str) -> None:
    change, words = DAMAGES[damage]
    alter(copied, change)
    for read in (inspect, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ArtifactError, match=rf"(?s)config\.json: .*{words}"):
            read(copied)


@pytest.mark.parametrize("change", [of_layout(experts=2), of_layout(top_k=2), of_layout(path="model.layers.9.mlp")])
def test_an_altered_structure_is_told_by_its_hash(copied: Path, change: Callable[[Values], Any]) -> None:
    alter(copied, change, rehash=False)
    for read in (inspect, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ArtifactError, match=r"config\.json was altered"):
            read(copied)


def test_other_bytes_than_the_config_describes_are_told_without_the_hash(copied: Path) -> None:
    alter(copied, of_structure(lambda s: s.update(dtypes={})))
    with pytest.raises(ArtifactError, match="one of them was replaced"):
        inspect(copied)


def test_a_quantization_config_that_is_a_list(copied: Path) -> None:
    path = copied / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": [1]}))
    with pytest.raises(ArtifactError, match="quantization_config cannot be read: expected a mapping"):
        inspect(copied)


@pytest.mark.parametrize(
    "report", ["[1]", '{"steps": [1]}', '{"steps": [{"routing": 5}]}', '{"steps": [{"routing": {"a": {}}}]}', "{", "5"]
)
def test_a_damaged_report(copied: Path, report: str) -> None:
    (copied / "run").mkdir()
    (copied / "run/report.json").write_text(report)
    with pytest.raises(ArtifactError, match=r"report\.json.* cannot be read"):
        inspect(copied)


def test_what_is_whole_is_read(copied: Path) -> None:
    alter(copied, lambda stored: None)
    assert inspect(copied)["roles"]["routed"]["parameters"] > 0
    AutoModelForCausalLM.from_pretrained(copied)
