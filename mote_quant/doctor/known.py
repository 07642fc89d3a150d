"""Combinations of packages that are known not to work, and what to do about each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from packaging.version import Version

from mote_quant.doctor.findings import Finding, error, warning
from mote_quant.doctor.packages import version

_SECONDS = 120


@dataclass(frozen=True)
class Known:
    """`check` is asked when all of `packages` are installed."""

    packages: tuple[str, ...]
    check: Callable[[], Finding | None]


def known_bad() -> Iterator[Finding]:
    """What of it is the case here."""
    for known in KNOWN:
        if all(version(name) is not None for name in known.packages):
            found = known.check()
            if found is not None:
                yield found


def _torchvision() -> Finding | None:
    reason = why_no_import("torchvision")
    if reason is None:
        return None
    return error(
        f"torchvision {version('torchvision')} does not import beside torch {version('torch')} ({reason}), and "
        "transformers then imports no model",
        "pip uninstall torchvision (image processors work without it), or install the build that belongs to this torch",
    )


def _auto_gptq() -> Finding:
    return warning(
        f"auto-gptq {version('auto-gptq')} is no longer maintained and does not import with transformers 5",
        "pip uninstall auto-gptq: GPTQ checkpoints are read and written without it; its successor is gptqmodel",
    )


def _autoawq() -> Finding:
    return warning(
        f"autoawq {version('autoawq')} is no longer maintained",
        "pip uninstall autoawq: AWQ checkpoints are read without it",
    )


def _two_backends() -> Finding:
    return warning(
        "gptqmodel and llmcompressor in one environment want different versions of transformers and numpy",
        "give each an environment of its own (docs/backends.md)",
    )


def _llmcompressor() -> Finding | None:
    if Version(version("transformers") or "0") < Version("5.18"):
        return None
    return warning(
        f"llmcompressor {version('llmcompressor')} supports transformers up to 5.17, here is {version('transformers')}",
        "use an environment of its own for it (docs/backends.md)",
    )


def _lmms_eval() -> Finding:
    return warning(
        f"lmms-eval {version('lmms-eval')} needs torchvision and old versions of what others here use",
        "pip uninstall lmms-eval: vision-language models are measured by `mote-quant evaluate --data`",
    )


KNOWN = (
    Known(("torchvision",), _torchvision),
    Known(("auto-gptq",), _auto_gptq),
    Known(("autoawq",), _autoawq),
    Known(("gptqmodel", "llmcompressor"), _two_backends),
    Known(("llmcompressor", "transformers"), _llmcompressor),
    Known(("lmms-eval",), _lmms_eval),
)


def why_no_import(module: str) -> str | None:
    """The error that importing `module` ends with, in a process of its own; None when it works."""
    command = [sys.executable, "-c", f"import {module}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return f"no end after {_SECONDS} seconds"
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {done.returncode}"
