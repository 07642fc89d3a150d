"""What the doctor finds here, and in environments that are made up."""

from __future__ import annotations

import socket
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from mote_quant.doctor import diagnose, examine, packages
from mote_quant.doctor import known as knowledge
from mote_quant.doctor.hardware import compiler, processor

VERSIONS = "mote_quant.doctor.known.version"


def installed(patch: pytest.MonkeyPatch, **versions: str) -> None:
    """As if only these packages were there; underscores stand for dashes."""
    known = {name.replace("_", "-"): number for name, number in versions.items()}
    patch.setattr(VERSIONS, known.get)


def test_this_environment_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the doctor went to the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    found = diagnose(tmp_path)
    assert found["usable"], found["findings"]
    assert found["versions"]["torch"] == metadata.version("torch")
    assert {"transformers", "datasets", "safetensors", "accelerate", "python"} <= set(found["versions"])
    assert found["machine"]["free_disk"] > 0
    assert found["cpu"]["cores"] >= 1
    assert set(found["kernels"]) >= {"ternary_matmul", "ternary_experts"}
    (demo,) = (extra for extra in found["extras"] if extra["name"] == "demo")
    assert demo["install"] == "pip install 'mote-quant[demo]'"


def test_every_extra_has_a_purpose() -> None:
    declared = {extra.name: extra.purpose for extra in packages.extras()}
    assert {"demo", "eval", "gptq", "bnb", "llmcompressor", "ray"} <= set(declared)
    assert [name for name, purpose in declared.items() if not purpose] == []


def test_an_extra_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"scikit-learn": "1.7", "matplotlib": "1.0"}
    monkeypatch.setattr(packages, "version", there.get)
    (demo,) = (extra for extra in packages.extras() if extra.name == "demo")
    assert demo.missing == ("matplotlib>=3.9",)


def test_required_packages_that_are_too_old_too_new_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {requirement.name: "999" for requirement in packages.required()}
    there |= {"transformers": "4.57.1", "torch": "2.4.0", "pydantic": "3.0"}
    del there["safetensors"]
    monkeypatch.setattr(packages, "version", there.get)
    found = {finding.what: finding for finding in packages.out_of_range()}
    assert set(found) == {
        "transformers 4.57.1 is not supported",
        "torch 2.4.0 is not supported",
        "pydantic 3.0 is not supported",
        "safetensors is not installed",
    }
    assert all(finding.severity == "error" for finding in found.values())
    assert ">=5.17" in found["transformers 4.57.1 is not supported"].advice


def test_nothing_known_is_wrong_with_nothing_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    assert list(knowledge.known_bad()) == []


def test_a_torchvision_that_does_not_import_breaks_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, torchvision="0.28", torch="2.13")
    monkeypatch.setattr(knowledge, "why_no_import", lambda module: None)
    assert list(knowledge.known_bad()) == []
    monkeypatch.setattr(knowledge, "why_no_import", lambda module: "RuntimeError: no nms")
    (finding,) = knowledge.known_bad()
    assert finding.severity == "error"
    assert "RuntimeError: no nms" in finding.what
    assert "pip uninstall torchvision" in finding.advice


@pytest.mark.parametrize(
    ("there", "told"),
    [
        ({"auto_gptq": "0.7.1"}, "auto-gptq 0.7.1"),
        ({"autoawq": "0.2.9"}, "autoawq 0.2.9"),
        ({"lmms_eval": "0.7"}, "lmms-eval 0.7"),
        ({"llmcompressor": "0.14", "transformers": "5.23.0"}, "transformers up to 5.17"),
        ({"llmcompressor": "0.14", "transformers": "5.17.0", "gptqmodel": "7.6"}, "gptqmodel and llmcompressor"),
    ],
)
def test_packages_that_are_known_for_trouble(there: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, **there)
    (finding,) = knowledge.known_bad()
    assert finding.severity == "warning"
    assert told in finding.what
    assert finding.advice


def test_why_a_module_does_not_import() -> None:
    assert knowledge.why_no_import("json") is None
    assert knowledge.why_no_import("no_such_module") == "ModuleNotFoundError: No module named 'no_such_module'"


def test_a_broken_torch_is_a_finding_not_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise OSError("libtorch.so: cannot open shared object file")

    monkeypatch.setattr(examine, "_kernels", broken)
    monkeypatch.setattr(examine, "_build_a_model", broken)
    found = diagnose()
    assert not found["usable"]
    assert sum("libtorch.so" in finding["what"] for finding in found["findings"]) == 2


def test_without_kernels_it_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    none = {"kernels": {}, "cpu": {"level": None, "levels": [], "reason": "not built"}, "threads": 1}
    monkeypatch.setattr(examine, "_kernels", lambda: none)
    monkeypatch.setattr(examine, "_build_a_model", lambda: None)
    for command, advice in (("c++", "python -m"), (None, "install a C++ compiler")):
        monkeypatch.setattr(examine, "compiler", lambda command=command: {"command": command, "reason": "none"})
        (finding,) = (finding for finding in diagnose()["findings"] if "no CPU kernels" in finding["what"])
        assert finding["severity"] == "warning"
        assert finding["advice"].startswith(advice)


def test_the_compiler_that_is_named_is_the_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert compiler() == {
        "command": None,
        "reason": "no-such-compiler compiles no C++17; install one, or name one in CXX",
    }


def test_features_are_those_the_system_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "cpuinfo"
    told.write_text("model name : A\nflags : fpu avx2 amx_int8\n\nmodel name : B\n")
    monkeypatch.setattr("mote_quant.doctor.hardware._CPUINFO", told)
    assert processor()["features"] == ["avx2", "amx_int8"]
    assert processor()["model"] == "A"
    told.unlink()
    assert processor()["features"] == []
