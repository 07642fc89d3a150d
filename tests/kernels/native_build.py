"""Builds and runs a stand-alone C++ check of kernel sources under the address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mote_quant.kernels.cpu import build

CHECKS = Path(__file__).parent / "native"
SANITIZERS = ("-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")


def run_check(name: str, sources: tuple[str, ...], folder: Path) -> str:
    """Compile native/`name`.cpp and the kernel sources whose names begin so; what it prints. Skips if it cannot."""
    try:
        command = build.compiler()
    except build.BuildError as error:
        pytest.skip(str(error))
    if not _links(command, folder):
        pytest.skip(f"{command[0]} has no sanitizers")
    planned = build.plan(build.usable_tiers(command), (*build.STRICT, *SANITIZERS, f"-I{build.SOURCES}"))
    jobs = {source: options for source, options in planned.items() if source.stem.startswith(sources)}
    common = next(options for source, options in planned.items() if build.tier_of(source) is None)
    jobs[CHECKS / f"{name}.cpp"] = common
    made = [folder / f"{source.stem}.o" for source in jobs]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = pool.map(
            lambda job: _run([*command, *job[1], "-c", str(job[0]), "-o", str(job[2])]),
            [(source, options, target) for (source, options), target in zip(jobs.items(), made, strict=True)],
        )
        list(compiled)
    program = folder / name
    _run([*command, *SANITIZERS, "-pthread", *map(str, made), "-o", str(program)])
    return _run([str(program)])


def _links(command: list[str], folder: Path) -> bool:
    probe = folder / "probe.cpp"
    probe.write_text("int main() { return 0; }\n")
    words = [*command, *SANITIZERS, str(probe), "-o", str(folder / "probe")]
    return subprocess.run(words, capture_output=True, check=False).returncode == 0


def _run(words: list[str]) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-4000:]}\n{done.stderr[-8000:]}"
    return done.stdout
