"""Installed packages held against what our own metadata asks for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.requirements import Requirement

from mote_quant.doctor.findings import Finding, error

DISTRIBUTION = "mote-quant"
PURPOSE = {
    "demo": "the embedded digits and the pictures of `mote-quant demo` and `sweep`",
    "eval": "lm-eval tasks in `mote-quant evaluate` and in sweeps",
    "peft": "LoRA adapters on packed weights",
    "ray": "sweeps on a cluster (`mote-quant sweep --ray`)",
    "gptq": "backend: gptqmodel, in an environment of its own",
    "bnb": "backend: bitsandbytes; AdamW with 8-bit states",
    "torchao": "AdamW with 8-bit states, as torchao has it",
    "llmcompressor": "backend: llmcompressor, in an environment of its own",
    "gguf": "nothing yet in this release",
    "bench": "the peers of the benchmarks",
    "test": "the tests",
    "dev": "the tests and the linters",
}
"""What each extra is for; our metadata says what it installs."""


@dataclass(frozen=True)
class Extra:
    """An optional part. `missing`: requirements that are not met; none when it is installed."""

    name: str
    purpose: str
    missing: tuple[str, ...]

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install '{DISTRIBUTION}[{self.name}]'"


def version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def required() -> list[Requirement]:
    """What our package asks for without any extra."""
    return [requirement for requirement in _requirements() if _applies(requirement, "")]


def extras() -> list[Extra]:
    """Every extra of our package."""
    names = metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or []
    always = {str(requirement) for requirement in required()}
    return [Extra(name, PURPOSE.get(name, ""), tuple(_missing(name, always))) for name in names]


def out_of_range() -> Iterator[Finding]:
    """Required packages that are not there, or of a version that is not supported."""
    for requirement in required():
        found = version(requirement.name)
        wanted = f"{requirement.name}{requirement.specifier}"
        if found is None:
            yield error(f"{requirement.name} is not installed", f"pip install '{wanted}'")
        elif not requirement.specifier.contains(found, prereleases=True):
            yield error(f"{requirement.name} {found} is not supported", f"pip install '{wanted}'")


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in metadata.requires(DISTRIBUTION) or []]


def _applies(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


def _missing(extra: str, always: set[str]) -> Iterator[str]:
    for requirement in _requirements():
        if str(requirement) in always or not _applies(requirement, extra):
            continue
        found = version(requirement.name)
        if found is None or not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name}{requirement.specifier}"
