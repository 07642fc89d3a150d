from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from mote_quant import doctor

Mote = Callable[..., Any]
FOUND: dict[str, Any] = {
    "usable": True,
    "findings": [],
    "versions": {"python": "3.11", "torch": None},
    "cpu": {"model": "A", "machine": "x", "cores": 2, "features": ["avx2"], "level": "avx2", "threads": 2},
    "kernels": {"ternary_matmul": "cpu"},
    "compiler": {"command": None, "reason": "there is no C++ compiler"},
    "accelerators": [{"name": "B", "memory": 2**30, "capability": "9.0"}],
    "machine": {"total_memory": 2**30, "free_memory": None, "free_disk": 2**20},
    "extras": [{"name": "ray", "purpose": "clusters", "missing": ["ray>=2"], "install": "pip install 'x[ray]'"}],
    "offline": True,
}


def found(patch: pytest.MonkeyPatch, **values: Any) -> None:
    patch.setattr(doctor, "diagnose", lambda: FOUND | values)


def test_tables(mote: Mote, monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch)
    result = mote("doctor")
    assert result.exit_code == 0, result.stderr
    for part in ("avx2", "none: there is no C++ compiler", "B, 1.00 GiB, compute capability 9.0", "not installed"):
        assert part in result.stdout
    for part in ("no: ray>=2", "pip install 'x[ray]'", "HF_HUB_OFFLINE", "unknown", "can work here"):
        assert part in result.stdout


def test_json(mote: Mote, monkeypatch: pytest.MonkeyPatch) -> None:
    found(monkeypatch)
    assert json.loads(mote("doctor", "--json").stdout) == FOUND


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_what_cannot_work_has_an_exit_code_of_its_own(
    flags: tuple[str, ...], mote: Mote, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = {"severity": "error", "what": "torch is not installed", "advice": "pip install torch"}
    found(monkeypatch, usable=False, findings=[broken])
    result = mote("doctor", *flags)
    assert result.exit_code == 2
    assert result.stderr == ""
    assert "torch is not installed" in result.stdout
    assert "pip install torch" in result.stdout
