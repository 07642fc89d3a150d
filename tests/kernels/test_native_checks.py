"""The C++ kernels on their own, under the address and undefined-behaviour sanitizers, at every level there is."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mote_quant.kernels.cpu import build

CHECK = Path(__file__).parent / "native" / "check_ternary.cpp"
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
FLAGS = ("-Werror", "-O1", "-g", "-DMOTE_EMULATE_AMX", "-DMOTE_EMULATE_AVXVNNI", f"-I{build.SOURCES}", *SANITIZE)
"""Emulated is what few machines have that tests run on."""
SHARED = {"counters", "experts", "level", "parallel", "scratch"}


def compiled(command: list[str], scratch: Path) -> Path:
    plan = build.plan(build.usable_tiers(command), FLAGS)
    sources = {source: flags for source, flags in plan.items() if source.stem in SHARED or "ternary" in source.stem}
    portable = next(flags for source, flags in plan.items() if source.stem == "scratch")

    def compile_one(source: Path, flags: list[str]) -> Path:
        made = scratch / f"{source.stem}.o"
        subprocess.run([*command, *flags, "-c", str(source), "-o", str(made)], check=True)
        return made

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        made = list(pool.map(compile_one, [*sources, CHECK], [*sources.values(), portable]))
    program = scratch / "check"
    subprocess.run([*command, *SANITIZE, "-pthread", *map(str, made), "-o", str(program)], check=True)
    return program


def test_ternary_kernels_under_sanitizers(tmp_path):
    try:
        command = build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    probe = tmp_path / "probe.cpp"
    probe.write_text("int main() {}\n")
    linked = subprocess.run([*command, *SANITIZE, str(probe), "-o", str(tmp_path / "probe")], capture_output=True)
    if linked.returncode:
        pytest.skip(f"{command[0]} has no sanitizers here")
    found = subprocess.run([compiled(command, tmp_path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "portable" in found.stdout
