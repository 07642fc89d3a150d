"""Nothing is downloaded unasked: with the network walled off, all that is local works."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pytest

from mote_quant.data import open_source
from mote_quant.data.stdlib_text.processor import VOCABULARY, build_processor
from tests import pico

Mote = Callable[..., Any]
RECIPE = """\
name: tiny
bits: {routed: ternary, shared: {format: int4, group_size: 16, method: gptq}, router: float32}
pipeline:
  - upcycle: {experts: 2}
  - train: {what: [routed, router], data: DATA, steps: 1, batch_size: 2, max_length: 16}
  - quantize: {calibration: {data: DATA, samples: 4, max_length: 16}}
"""


@pytest.fixture(autouse=True)
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Whatever asked for the network, which was refused."""
    asked = list[Any]()

    def refused(*arguments: Any, **options: Any) -> Any:
        asked.append(arguments)
        raise OSError("this test has no network")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refused)
    for name in ("getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refused)
    return asked


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "reader"
    pico.PICO["qwen2"](vocab_size=VOCABULARY, max_position_embeddings=64).save_pretrained(folder)
    build_processor().save_pretrained(folder)
    return folder


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.replace("DATA", "elsewhere.jsonl"))
    return path


def test_the_wall_stands(attempts: list[Any]) -> None:
    with pytest.raises(OSError, match="no network"):
        socket.create_connection(("localhost", 1))
    assert len(attempts) == 1


def test_recipes_and_plans_from_names_of_models(mote: Mote, attempts: list[Any]) -> None:
    assert mote("recipes").exit_code == 0
    for command, recipe, model in (
        (["plan"], "mote", "google/gemma-3-1b-it"),
        (["apply", "--dry-run"], "mote-qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B"),
        (["apply", "--dry-run"], "mote-digits", "digits-vqa"),
    ):
        result = mote(*command, recipe, "--model", model, "--no-times", "--json")
        assert result.exit_code == 0, result.stderr
    assert attempts == []


@pytest.mark.parametrize("folder", [False, True])
def test_apply_on_local_data(
    folder: bool, mote: Mote, tiny: Path, reader: Path, tmp_path: Path, attempts: list[Any]
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = data / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": f"line {number} " * 20}) for number in range(40)))
    out = tmp_path / "out"
    result = mote("apply", tiny, "-m", reader, "--data", data if folder else rows, "-o", out, "-q")
    assert result.exit_code == 0, result.stderr
    assert (out / "config.json").is_file()
    assert attempts == []


@pytest.mark.parametrize("name", ["digits-vqa", pytest.param("stdlib-text", marks=pytest.mark.slow)])
def test_embedded_data(name: str, attempts: list[Any]) -> None:
    assert open_source(name, processor=None if name == "digits-vqa" else build_processor(), max_length=128).train
    assert attempts == []


def one_error(result: Any, *parts: str) -> None:
    assert result.exit_code == 2
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error: "))
    for part in parts:
        assert part in line


def test_names_of_the_hub_are_one_clear_error(
    mote: Mote, tiny: Path, reader: Path, tmp_path: Path, attempts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "rows.jsonl").write_text("{}")
    local, output = ("--data", tmp_path / "rows.jsonl"), ("-o", tmp_path / "out", "--no-times")
    # One whose config would have to be had, and one whose sizes are known.
    one_error(mote("apply", tiny, "-m", "someone/some-model", *local, *output), "someone/some-model", "HF_HUB_OFFLINE")
    known = mote("apply", tiny, "-m", "Qwen/Qwen2.5-0.5B", *local, *output)
    one_error(known, "Qwen/Qwen2.5-0.5B", "Hugging Face Hub", "path of a model folder")
    data = mote("apply", tiny, "-m", reader, "--data", "a/b:c", *output)
    one_error(data, "a/b:c", "HF_HUB_OFFLINE is set", "give a local .txt")
    # Whether the checkpoints of a whole run would fit on this disk is not what this is about.
    small = ("--set", "pipeline.0.upcycle.experts=1", "--set", "pipeline.0.upcycle.layers=[0]")
    unasked = mote("apply", "mote-qwen2.5-0.5b", *small, *local, *output)
    one_error(unasked, "nothing is downloaded unasked", "--model Qwen/Qwen2.5-0.5B")
    assert attempts == []
