"""`inspect`: what a saved model holds, role by role, checked against what it says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from mote_quant.errors import ArtifactError
from mote_quant.hf.integrity import verify_files
from mote_quant.hf.loading import skeleton_in
from mote_quant.hf.saving import stored_bytes
from mote_quant.hf.skeleton import foreign_method, read_config, stored_config
from mote_quant.hf.stored import read
from mote_quant.kernels.table import implementations
from mote_quant.memory.ledger import weigh


class _Figures(BaseModel):
    load: list[float]
    balance: float
    entropy: float


class _Step(BaseModel):
    routing: dict[str, _Figures] = {}


class _Report(BaseModel):
    """What is read of a run's report."""

    steps: list[_Step]


def inspect(folder: str | Path) -> dict[str, Any]:
    """The stable JSON of `mote-quant inspect DIR --json`.

    Verifies the weight files first; ArtifactError names a file that is missing, truncated, altered, or not of the size
    its config says. Of a folder that another library quantized it tells what `load_model` makes of it.
    """
    folder = Path(folder)
    config = read_config(folder)
    foreign = foreign_method(config) is not None
    stored = None if foreign else stored_config(config)
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ArtifactError(f"{folder} holds no weight files (*.safetensors)")
    if stored is not None:
        verify_files(files, {name: file.model_dump() for name, file in stored.files.items()})
    ledger = weigh(skeleton_in(folder)).to_json()
    on_disk = stored_bytes(folder)
    if not foreign and on_disk != ledger["stored_bytes"]:
        raise ArtifactError(
            f"{folder}: its files hold {on_disk} bytes of tensors, its config describes {ledger['stored_bytes']}; "
            "one of them was replaced"
        )
    return ledger | {
        "kernels": implementations(),
        "router": _router_statistics(folder),
        "provenance": {} if stored is None else stored.provenance,
    }


def made_elsewhere(folder: Path) -> bool:
    """Whether nothing in `folder` shows the hand of this package, nor that of another quantizer."""
    config = read_config(folder)
    return foreign_method(config) is None and stored_config(config) is None and not (folder / "run").is_dir()


def _router_statistics(folder: Path) -> dict[str, Any]:
    """Expert load, balance and routing entropy at the end of training, from the run's report; empty without one."""
    report = folder / "run" / "report.json"
    if not report.is_file():
        return {}
    try:
        steps = read(_Report, json.loads(report.read_text()), str(report)).steps
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{report} cannot be read ({error})") from error
    routings = [step.routing for step in steps if step.routing]
    return {layer: figures.model_dump() for layer, figures in routings[-1].items()} if routings else {}
