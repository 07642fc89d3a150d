"""`diagnose`: everything the doctor looks at, as one dictionary. Nothing is downloaded, and nothing is changed."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mote_quant.doctor.findings import Finding, error, warning
from mote_quant.doctor.hardware import accelerators, compiler, processor
from mote_quant.doctor.known import known_bad
from mote_quant.doctor.packages import extras, out_of_range, required, version
from mote_quant.version import __version__

_BESIDE = ("triton", "huggingface_hub", "peft", "torchvision")
"""Packages that are no requirement, and whose versions matter all the same."""
_LITTLE_DISK = 2**30


def diagnose(folder: Path | None = None) -> dict[str, Any]:
    """The stable JSON of `mote-quant doctor --json`; `usable` is False where there is a finding of severity error.

    `folder` is where models would be written; the working directory without.
    """
    findings = [*out_of_range(), *known_bad()]
    kernels = _tried("the kernels", _kernels, findings) or {}
    gpus = _tried("torch", accelerators, findings) or []
    _tried("transformers", _build_a_model, findings)
    machine = _machine(folder or Path())
    found = {
        "versions": _versions(),
        "cpu": processor() | kernels.get("cpu", {}) | {"threads": kernels.get("threads")},
        "kernels": kernels.get("kernels", {}),
        "compiler": compiler(),
        "accelerators": gpus,
        "machine": machine,
        "extras": [asdict(extra) | {"install": extra.install} for extra in extras()],
        "offline": os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"),
    }
    findings += _less_than_it_could(found)
    usable = not any(finding.severity == "error" for finding in findings)
    return {"usable": usable, "findings": [asdict(finding) for finding in findings], **found}


def _versions() -> dict[str, str | None]:
    ours = {"mote_quant": __version__, "python": platform.python_version(), "system": platform.platform()}
    names = [*(requirement.name for requirement in required()), *_BESIDE]
    return ours | {name: version(name) for name in names}


def _tried(what: str, look: Callable[[], Any], findings: list[Finding]) -> Any:
    """What `look` finds; where it fails, a finding and None."""
    try:
        return look()
    except Exception as failure:
        first = next((line for line in str(failure).splitlines() if line.strip()), "")
        text = f"{what} cannot be used ({type(failure).__name__}: {first})"
        findings.append(error(text, "install the versions of constraints.txt in a fresh environment"))
        return None


def _kernels() -> dict[str, Any]:
    from mote_quant.kernels.describe import describe

    return describe()


def _build_a_model() -> None:
    """On the meta device: an import that is broken shows nowhere else."""
    from mote_quant.data.stdlib_text.model import build_config
    from mote_quant.hf.skeleton import skeleton_of

    skeleton_of(build_config())


def _machine(folder: Path) -> dict[str, int | None]:
    from mote_quant.machine import free_disk, memory

    total, free = memory()
    return {"total_memory": total, "free_memory": free, "free_disk": free_disk(folder)}


def _less_than_it_could(found: dict[str, Any]) -> Iterator[Finding]:
    if found["cpu"].get("reason"):
        has_compiler = found["compiler"]["command"] is not None
        advice = (
            "python -m mote_quant.kernels.cpu.build"
            if has_compiler
            else "install a C++ compiler, then run python -m mote_quant.kernels.cpu.build"
        )
        yield warning(f"no CPU kernels ({found['cpu']['reason']}): packed models run many times slower", advice)
    if not found["accelerators"] and shutil.which("nvidia-smi"):
        yield warning("there is an NVIDIA GPU here, and torch cannot use it", "install a CUDA build of torch")
    free = found["machine"]["free_disk"]
    if free is not None and free < _LITTLE_DISK:
        yield warning("less than 1 GiB of disk is free here", "name a larger one with --output")
