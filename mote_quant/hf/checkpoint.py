"""Training checkpoints: safetensors and JSON in a folder that is whole or not there, hashed, the newest one kept.

Every process writes a file of its own, with its part of what is sharded; the first one also what is not. Whoever reads
takes from the files the rows it needs, however many processes wrote them and however many read.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from mote_quant.errors import ArtifactError, SaveError
from mote_quant.hf.integrity import describe, read_manifest, sync, verify_file
from mote_quant.ranks import about_others, by_main, gathered, ranks, together

_STATE, _MANIFEST = "state.json", "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_VERSION = 2
_OWN = "own."


@dataclass(frozen=True)
class Checkpoint:
    """Everything needed to go on: named tensors (sharded or not), JSON-ready values, and tensors of this rank alone."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    own: dict[str, Tensor] = field(default_factory=dict)


def write(folder: Path, step: int, checkpoint: Checkpoint, extra: dict[str, str], keep: int = 1) -> Path:
    """Write `folder/checkpoint-<step>` (`extra`: more text files by name); the newest `keep` stay. Raises SaveError.

    All ranks take part, and a failure of one is one of all.
    """
    target, aside = folder / f"checkpoint-{step}", folder / f".checkpoint-{step}.part"
    try:
        by_main(lambda: _begin(aside))
        file = together(lambda: _write_own(aside, checkpoint))
        files = {path.name: about for path, about in gathered(file)}
        by_main(lambda: _finish(target, aside, checkpoint.values, extra, files))
    except Exception as error:
        if about_others(error):
            raise
        if ranks().main:
            shutil.rmtree(aside, ignore_errors=True)
        kept = "The checkpoint before it is kept; free" if latest(folder) else "Free"
        raise SaveError(f"{target} could not be written: {error}. {kept} space and re-run") from error
    if ranks().main:
        _drop_older(folder, keep)
    return target


def _begin(aside: Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def _write_own(aside: Path, checkpoint: Checkpoint) -> tuple[Path, dict[str, Any]]:
    here = ranks()
    path = aside / f"state-{here.rank + 1:05}-of-{here.world:05}.safetensors"
    tensors: dict[str, Tensor] = {f"{_OWN}{name}": tensor for name, tensor in checkpoint.own.items()}
    starts: dict[str, int] = {}
    for name, tensor in checkpoint.tensors.items():
        if isinstance(tensor, DTensor):
            tensors[name], starts[name] = tensor.to_local(), first_row(len(tensor))
        elif here.main:
            tensors[name], starts[name] = tensor, 0
    save_file({name: t.contiguous() for name, t in tensors.items()}, path, {"starts": json.dumps(starts)})
    sync(path)
    return path, describe(path)


def _finish(
    target: Path, aside: Path, values: dict[str, Any], extra: dict[str, str], files: dict[str, dict[str, Any]]
) -> None:
    for name, text in {_STATE: json.dumps({"version": _VERSION, "values": values}), **extra}.items():
        (aside / name).write_text(text)
        files[name] = describe(aside / name)
        sync(aside / name)
    (aside / _MANIFEST).write_text(json.dumps(files))
    sync(aside / _MANIFEST)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(aside, target)
    sync(target.parent)


def _drop_older(folder: Path, keep: int) -> None:
    found = whole(folder)
    kept = [found[step] for step in sorted(found)[-keep:]]
    for path in folder.glob("*checkpoint-*"):
        if path not in kept and _NAME.fullmatch(path.name.removeprefix(".").removesuffix(".part")):
            shutil.rmtree(path, ignore_errors=True)


def first_row(rows: int) -> int:
    """Where this rank's part of `rows` begins: all parts are alike, the last ones may be short or empty."""
    here = ranks()
    return min(here.rank * -(-rows // here.world), rows)


def whole(folder: Path) -> dict[int, Path]:
    """Step -> checkpoint, of those in `folder` that are whole."""
    return {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))}


def latest(folder: Path | None) -> Path | None:
    """The newest whole checkpoint in `folder`, or None."""
    found = {} if folder is None else whole(folder)
    return found[max(found)] if found else None


@dataclass(frozen=True)
class Place:
    """Where rows of a tensor lie: in `file`, from row `first` of the whole on; `shape` is that of the part."""

    file: Any
    first: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Saved:
    """A checkpoint on disk: `values` as they were given to `write`; `files` are those of the ranks, in order."""

    values: dict[str, Any]
    files: list[Path]
    places: Mapping[str, list[Place]]

    @property
    def world(self) -> int:
        """How many processes wrote it."""
        return len(self.files)

    def names(self, prefix: str) -> list[str]:
        """The tensors whose names begin with `prefix.`, without it."""
        return [name.removeprefix(f"{prefix}.") for name in self.places if name.startswith(f"{prefix}.")]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""
        parts = [place.shape for place in self.places[name]]
        return (sum(part[0] for part in parts), *parts[0][1:]) if parts[0] else ()

    def like(self, name: str, other: Tensor) -> Tensor:
        """A tensor on the device of `other`, sharded like it where that is."""
        if not isinstance(other, DTensor):
            return self.rows(name, 0, None).to(other.device)
        start = first_row(len(other))
        local = self.rows(name, start, start + len(other.to_local())).to(other.device)
        return DTensor.from_local(
            local, other.device_mesh, other.placements, shape=other.shape, stride=other.stride(), run_check=False
        )

    def rows(self, name: str, start: int, stop: int | None) -> Tensor:
        """Rows `start` to `stop` of a tensor; None: all of it, and of one without rows."""
        pieces = []
        for place in self.places[name]:
            if stop is None:
                pieces.append(place.file.get_tensor(name))
                continue
            first, last = (min(max(row - place.first, 0), place.shape[0]) for row in (start, stop))
            pieces.append(place.file.get_slice(name)[first:last])
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def own(self) -> dict[str, Tensor] | None:
        """What this rank alone had written; None where there were fewer ranks."""
        index = ranks().rank
        return _own_tensors(self.files[index]) if index < len(self.files) else None


def _own_tensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(_OWN)]  # noqa: SIM118 (no mapping)
        return {name.removeprefix(_OWN): file.get_tensor(name) for name in names}


def read(path: Path) -> Saved:
    """Check `path` against its manifest, then open it. Raises ArtifactError naming the damaged file."""
    advice = f"delete {path} to redo this step, or to go on from an earlier checkpoint where one is left"
    listed = read_manifest(path / _MANIFEST, advice)
    for name, expected in listed.items():
        verify_file(path / name, expected, advice)
    state = json.loads((path / _STATE).read_text())
    if state.get("version") != _VERSION:
        raise ArtifactError(f"{path} was written by another version of mote-quant; {advice}")
    files = sorted(path / name for name in listed if name.endswith(".safetensors"))
    return Saved(state["values"], files, _places(files))


def _places(files: Sequence[Path]) -> dict[str, list[Place]]:
    places: dict[str, list[Place]] = {}
    # Opened once: a file is searched through for each of its tensors that it is opened for.
    for path in files:
        file: Any = safe_open(path, framework="pt")
        for name, first in json.loads(file.metadata()["starts"]).items():
            places.setdefault(name, []).append(Place(file, first, tuple(file.get_slice(name).get_shape())))
    return places
