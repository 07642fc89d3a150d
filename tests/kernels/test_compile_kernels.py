"""The C++ kernels are compiled where there is a compiler, and missed loudly where there is none."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mote_quant.errors import KernelError
from mote_quant.kernels import describe
from mote_quant.kernels.cpu import build, library


def test_a_compiler_that_is_named_and_fails_is_not_replaced_by_another(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(build.BuildError, match="/bin/false compiles no C"):
        build.build(Path("never.so"))
    assert not Path("never.so").exists()


def test_cxx_goes_before_cc(monkeypatch):
    monkeypatch.setenv("CXX", "/bin/false")
    monkeypatch.setenv("CC", "gcc")
    with pytest.raises(build.BuildError, match="/bin/false"):
        build.compiler()


def test_without_any_compiler_it_says_what_to_install(monkeypatch):
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(build.BuildError, match="install one, or name one in CXX"):
        build.compiler()


def test_every_source_of_this_machine_is_compiled_with_the_flags_its_name_asks_for():
    flags = {"avx2": ("-mavx2",), "neon": ("-dotprod",)}
    planned = {path.name: options for path, options in build.plan(flags, ()).items()}
    assert "level.cpp" in planned
    assert not any("amx" in name or "avx512" in name for name in planned)
    for name, options in planned.items():
        assert ("-mavx2" in options) == name.endswith("_avx2.cpp")
        assert {"-DMOTE_WITH_AVX2", "-DMOTE_WITH_NEON"} <= set(options)


def asked(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, check=False
    )


DESCRIBE = "import json; from mote_quant.kernels.describe import describe; print(json.dumps(describe()))"


def test_reference_asks_for_no_kernels_and_is_told_so():
    found = json.loads(asked(DESCRIBE, MOTE_QUANT_CPU="reference").stdout)
    assert found["cpu"] == {
        "level": None, "levels": [], "reason": "MOTE_QUANT_CPU=reference asks for the torch reference"
    }  # fmt: skip
    assert set(found["kernels"].values()) <= {"torch", "bitsandbytes", "triton"}


def test_a_level_that_does_not_exist_is_an_error_that_names_those_that_do():
    if library.library() is None:
        pytest.skip(f"no CPU kernels: {library.why_not()}")
    failed = asked(DESCRIBE, MOTE_QUANT_CPU="avx1024")
    assert "MOTE_QUANT_CPU=avx1024: levels are portable" in failed.stderr
    assert "KernelError" in failed.stderr


def test_every_level_of_this_machine_can_be_forced_and_seen():
    if library.library() is None:
        pytest.skip(f"no CPU kernels: {library.why_not()}")
    for level in library.levels():
        found = json.loads(asked(DESCRIBE, MOTE_QUANT_CPU=level.name).stdout)
        assert found["cpu"]["level"] == level.name


@pytest.fixture
def fresh(monkeypatch):
    library.library.cache_clear()
    yield monkeypatch
    library.library.cache_clear()


def test_kernels_that_were_not_compiled_are_missed_once_with_the_way_to_get_them(fresh, caplog, tmp_path):
    fresh.setattr(library, "LIBRARY", tmp_path / "_mote.so")
    fresh.delenv(library.CHOICE, raising=False)
    with caplog.at_level(logging.WARNING):
        assert library.library() is None
        assert library.library() is None
    assert caplog.text.count("python -m mote_quant.kernels.cpu.build") == 1
    assert "they were not compiled; install a C++ compiler" in library.why_not()
    assert library.level() is None
    assert library.levels() == []
    assert set(library.calls().values()) == {0}
    with pytest.raises(KernelError, match="install a C"):
        library.set_level(library.Level.portable)
    assert describe.describe()["kernels"]["ternary_matmul"] == "torch"


def test_a_library_that_is_damaged_is_not_used(fresh, caplog, tmp_path):
    broken = tmp_path / "_mote.so"
    broken.write_bytes(b"\x7fELF nothing else")
    fresh.setattr(library, "LIBRARY", broken)
    fresh.delenv(library.CHOICE, raising=False)
    assert library.library() is None
    assert "cannot be loaded" in caplog.text
    assert "belongs to another version or machine" in library.why_not()


def test_a_library_of_another_version_is_not_used(fresh, caplog):
    fresh.delenv(library.CHOICE, raising=False)
    if library.library() is None:
        pytest.skip(f"no CPU kernels: {library.why_not()}")
    library.library.cache_clear()
    fresh.setattr(library, "ABI", library.ABI + 1)
    assert library.library() is None
    assert "of another version" in caplog.text
