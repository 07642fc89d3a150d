"""Shell completion, asked for in the way shells ask."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ASK = """
import sys
from mote_quant.cli import main
sys.argv = ["mote-quant"]
try:
    main()
finally:
    print("loaded:", sorted({"torch", "transformers", "datasets", "numpy"} & set(sys.modules)), file=sys.stderr)
"""


def completed(*words: str, folder: Path | None = None) -> list[str]:
    """What bash is offered after these words, the last of which is incomplete; nothing heavy may be imported."""
    asked = {
        "COMP_WORDS": " ".join(["mote-quant", *words]),
        "COMP_CWORD": str(len(words)),
        "_MOTE_QUANT_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=folder,
        env=os.environ | asked,
    )
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stderr
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "runs" / "mote").mkdir(parents=True)
    (tmp_path / "more.yaml").write_text("")
    (tmp_path / "rows.jsonl").write_text("")
    (tmp_path / "notes.md").write_text("")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_recipes_and_files(folder: Path) -> None:
    offered = completed("apply", "mo", folder=folder)
    assert {"mote", "mote-digits", "moe-text", "more.yaml"} <= set(offered)
    assert not {"notes.md", "runs/", ".hidden/"} & set(offered)
    assert completed("recipes", "show", "ptq-gptqm") == ["ptq-gptqmodel"]


def test_sweeps() -> None:
    assert completed("sweep", "tinys") == ["tinystories"]


def test_models_data_and_folders(folder: Path) -> None:
    assert completed("plan", "mote", "--model", "gemma") == ["gemma-3-1b"]
    assert completed("plan", "mote", "--model", "digits") == ["digits-vqa"]
    assert completed("apply", "mote", "--model", "ru", folder=folder) == ["runs/"]
    assert completed("apply", "mote", "--model", "runs/", folder=folder) == ["runs/mote/"]
    assert completed("apply", "mote", "--data", "ro", folder=folder) == ["rows.jsonl"]


def test_settings_of_the_recipe_on_the_line() -> None:
    assert completed("apply", "mote", "--set", "pipeline.1.train.lea") == [
        "pipeline.1.train.learning_rate=",
        "pipeline.1.train.learning_rates=",
    ]
    assert "bits.shared.group_size=" in completed("plan", "mote", "--model", "x", "--set", "bits.shared.")
    assert completed("plan", "no-such-recipe", "--set", "bits.") == []


def test_commands() -> None:
    assert completed("doc") == ["doctor"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_each_shell(shell: str) -> None:
    # Typer otherwise asks the processes above which shell this is, and there may be none.
    env = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-m", "mote_quant", "--show-completion", shell]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert done.returncode == 0, done.stderr
    assert "_MOTE_QUANT_COMPLETE" in done.stdout
