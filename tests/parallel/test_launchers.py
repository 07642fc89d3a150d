"""The program as users start it on several devices: torchrun, accelerate launch; and what their environment may say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mote_quant.cli import app
from mote_quant.data.stdlib_text.processor import build_processor
from mote_quant.errors import RequestError
from mote_quant.parallel import chosen, recipe_decides
from tests import pico
from tests.mixtures import tensors_in

RECIPE = """\
name: launched
bits: {routed: ternary, shared: {format: int4, group_size: 16}, router: float32}
pipeline:
  - upcycle: {experts: 2}
  - train: {what: [routed, router], data: DATA, steps: 3, batch_size: 2, max_length: 32, checkpoint_every: 2}
  - quantize
"""
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
ACCELERATE = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--cpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
]
ACCELERATE += ["--mixed_precision", "no", "--dynamo_backend", "no"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model folder with its tokenizer, a text, and a recipe."""
    folder = tmp_path_factory.mktemp("launched")
    processor = build_processor()
    pico.PICO["llama"](vocab_size=len(processor)).save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    text = "\n".join(Path(json.__file__).read_text().splitlines()[:60])
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for _ in range(3)))
    (folder / "recipe.yaml").write_text(RECIPE.replace("DATA", str(folder / "text.jsonl")))
    return folder


def start(launcher: list[str], given: Path, output: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [*launcher, "-m", "mote_quant", "apply", str(given / "recipe.yaml"), "--model", str(given / "model")]
    if not launcher:
        command = [sys.executable, *command]
    return subprocess.run(
        [*command, "--output", str(given / output), "--no-times", *more],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def alone(given):
    done = start([], given, "alone")
    assert done.returncode == 0, done.stderr
    return tensors_in(given / "alone")


@pytest.mark.parametrize(
    ("name", "launcher", "more"),
    [("torchrun", TORCHRUN, ["--sharding", "fsdp2"]), ("accelerate", ACCELERATE, [])],
)
def test_the_program_under_a_launcher_writes_what_it_writes_alone(given, alone, name, launcher, more):
    done = start(launcher, given, name, *more)
    assert done.returncode == 0, done.stderr
    written = tensors_in(given / name)
    assert written.keys() == alone.keys()
    assert all((written[key] == tensor).all() for key, tensor in alone.items() if "gate" not in key)
    # Of two processes one speaks.
    assert done.stdout.count("What it weighs") == 1


def test_accelerates_own_word_for_sharding_is_understood(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert chosen(None) == "fsdp2"
    assert chosen("ddp") == "ddp"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with recipe_decides("float32"):
        assert "ACCELERATE_USE_FSDP" not in os.environ
        assert "ACCELERATE_MIXED_PRECISION" not in os.environ
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"RANK": "a", "WORLD_SIZE": "2"}, "RANK=a in the environment is no number"),
        ({"RANK": "3"}, "the environment says RANK 3 and WORLD_SIZE 1, and ranks count from 0"),
        ({"WORLD_SIZE": "0"}, "RANK 0 and WORLD_SIZE 0"),
    ],
)
def test_an_environment_that_no_launcher_made_is_one_error(told, words, given, monkeypatch):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    command = ["apply", str(given / "recipe.yaml"), "--model", str(given / "model"), "--output", str(given / "never")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert words in done.stderr
    assert not (given / "never").exists()


def test_a_way_to_share_that_nobody_knows_is_refused():
    with pytest.raises(RequestError, match=r"by fsdp; did you mean fsdp2\?"):
        chosen("fsdp")
    with pytest.raises(RequestError, match="by zero; choose of ddp, fsdp2"):
        chosen("zero")


def test_deepspeed_is_refused_with_what_to_do_instead(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RequestError, match="--use_fsdp"):
        chosen(None)
