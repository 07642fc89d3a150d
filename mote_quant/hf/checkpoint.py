"""Training checkpoints: safetensors and JSON in a folder that is whole or not there, hashed, the newest one kept."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from mote_quant.errors import SaveError
from mote_quant.hf.integrity import describe, read_manifest, sync, verify_file

_TENSORS, _STATE, _MANIFEST = "state.safetensors", "state.json", "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to go on: named tensors, and JSON-ready values."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def write(folder: Path, step: int, checkpoint: Checkpoint, extra: dict[str, str]) -> Path:
    """Write `folder/checkpoint-<step>` (`extra`: more text files by name) and drop older ones. Raises SaveError."""
    target, aside = folder / f"checkpoint-{step}", folder / f".checkpoint-{step}.part"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}, aside / _TENSORS)
        for name, text in {_STATE: json.dumps(checkpoint.values), **extra}.items():
            (aside / name).write_text(text)
        files = {path.name: describe(path) for path in sorted(aside.iterdir())}
        (aside / _MANIFEST).write_text(json.dumps(files))
        for path in aside.iterdir():
            sync(path)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(aside, target)
        sync(folder)
    except Exception as error:
        shutil.rmtree(aside, ignore_errors=True)
        kept = "The checkpoint before it is kept; free" if latest(folder) else "Free"
        raise SaveError(f"{target} could not be written: {error}. {kept} space and re-run") from error
    _drop_older(folder, target)
    return target


def _drop_older(folder: Path, newest: Path) -> None:
    for path in folder.glob("*checkpoint-*"):
        if path != newest and _NAME.fullmatch(path.name.removeprefix(".").removesuffix(".part")):
            shutil.rmtree(path, ignore_errors=True)


def latest(folder: Path | None) -> Path | None:
    """The newest whole checkpoint in `folder`, or None."""
    paths = [] if folder is None else folder.glob("checkpoint-*")
    found = {int(match[1]): path for path in paths if (match := _NAME.fullmatch(path.name))}
    return found[max(found)] if found else None


def read(path: Path) -> Checkpoint:
    """Check `path` against its manifest, then read it. Raises ArtifactError naming the damaged file."""
    advice = f"delete {path} to redo this step, or to go on from an earlier checkpoint where one is left"
    for name, expected in read_manifest(path / _MANIFEST, advice).items():
        verify_file(path / name, expected, advice)
    return Checkpoint(load_file(path / _TENSORS), json.loads((path / _STATE).read_text()))
