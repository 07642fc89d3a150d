"""Requests that cannot be met: exit code 2, and a message that says what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

Mote = Callable[..., Any]


def refused(result: Any) -> list[str]:
    assert result.exit_code == 2
    assert result.stdout == ""
    lines: list[str] = result.stderr.splitlines()
    assert lines
    assert all(line.startswith("error: ") for line in lines)
    return lines


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_every_mistake_of_a_recipe_has_a_line(command: str, mote: Mote, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: bad\nbits: {routed: int7}\npipelin:\n  - train: {}\n")
    lines = refused(mote(command, path))
    assert len(lines) == 2
    assert all("bad.yaml" in line for line in lines)


def test_a_setting_that_cannot_be(mote: Mote, recipe: str, model: str) -> None:
    assert "bits.shared.format" in refused(mote("plan", recipe, "-m", model, "--set", "bits.shared.format=int7"))[0]


def test_no_model_named(mote: Mote, recipe: str) -> None:
    assert "--model" in refused(mote("apply", recipe))[0]


@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_folder_that_holds_no_model(command: str, mote: Mote, recipe: str, tmp_path: Path) -> None:
    assert "config.json" in refused(mote(command, recipe, "--model", tmp_path))[0]


def test_a_name_that_is_nearly_known(mote: Mote, recipe: str) -> None:
    assert "Qwen2.5-3B" in refused(mote("plan", recipe, "--model", "Qwen2.5-3"))[0]


def test_a_name_that_the_hub_does_not_give(mote: Mote, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(name: str) -> None:
        raise OSError("no connection\nand more")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", offline)
    (line,) = refused(mote("plan", recipe, "--model", "someone/some-model"))
    assert "someone/some-model" in line
    assert "no connection" in line


def test_a_rule_that_matches_nothing(mote: Mote, recipe: str, model: str) -> None:
    assert "visoin" in refused(mote("plan", recipe, "-m", model, "--set", "bits.visoin=int4"))[0]


@pytest.mark.parametrize("arguments", [("plann",), ("sweep",), ("apply", "x", "--nope"), ("demo", "--nope")])
def test_usage(arguments: tuple[str, ...], mote: Mote) -> None:
    result = mote(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr
