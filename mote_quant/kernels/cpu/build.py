"""Compile the C++ kernels: `python -m mote_quant.kernels.cpu.build`. Standard library only: it runs at install time.

The compiler is $CXX, else $CC, else the first of c++, g++ and clang++ that is there. What an instruction set needs is
in the name of a source file (`ternary_avx512.cpp`); one that the compiler does not know is left out.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
LIBRARY = Path(__file__).parent / "_mote.so"
COMMON: tuple[str, ...] = (
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-pthread", "-Wall", "-Wextra"),
    # Not -ffast-math: NaN must stay NaN, and products may not be fused where codes depend on every rounding.
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
STRICT = ("-Werror",)
# A symbol that is missing is an error now, not when somebody loads the library (elsewhere than on Linux it always is).
# By its own name, for a compiler that was named in $CC is one of C.
_LIBRARIES = ("-lstdc++", "-lm") if sys.platform == "linux" else ()
_LINK = ("-shared", "-pthread", *(["-Wl,--no-undefined"] if sys.platform == "linux" else []))
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni")
TIERS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx2": _AVX2,
        "avxvnni": (*_AVX2, "-mavxvnni"),
        "avx512": _AVX512,
        "avx512vbmi": (*_AVX512, "-mavx512vbmi"),
        "avx512bf16": (*_AVX512, "-mavx512bf16", "-mavx512vbmi"),
        "amx": (*_AVX512, "-mamx-tile", "-mamx-int8"),
    },
    "aarch64": {"neon": ("-march=armv8.2-a+dotprod",)},
}
"""Flags of the files whose names end so, by machine."""
_ALIASES = {"AMD64": "x86_64", "arm64": "aarch64"}
_EVERY_TIER = frozenset(name for tiers in TIERS.values() for name in tiers)


class BuildError(Exception):
    """The kernels could not be compiled; the message says why."""


def compiler() -> list[str]:
    """The command of a C++ compiler; BuildError where none works."""
    named = os.environ.get("CXX") or os.environ.get("CC")
    for command in [named] if named else ["c++", "g++", "clang++"]:
        try:
            words = shlex.split(command)
        except ValueError as error:
            raise BuildError(f"{command!r} in CXX or CC is no command ({error})") from error
        if words and shutil.which(words[0]) and _accepts(words, ()):
            return words
    missing = f"{named} compiles no C++17" if named else "there is no C++ compiler (c++, g++ or clang++)"
    raise BuildError(f"{missing}; install one, or name one in CXX")


def build(output: Path = LIBRARY, *, flags: tuple[str, ...] = STRICT) -> Path:
    """Compile and link the library at `output`, which is replaced when all is done; BuildError if it fails."""
    command = compiler()
    tiers = usable_tiers(command)
    with tempfile.TemporaryDirectory() as scratch:
        jobs = [
            (source, Path(scratch) / f"{source.stem}.o", options)
            for source, options in plan(tiers, flags).items()
        ]  # fmt: skip
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda job: _run([*command, *job[2], "-c", str(job[0]), "-o", str(job[1])]), jobs))
        linked = Path(scratch) / output.name
        _run([*command, *_LINK, *[str(made) for _, made, _ in jobs], "-o", str(linked), *_LIBRARIES])
        output.parent.mkdir(parents=True, exist_ok=True)
        arrived = output.with_name(f".{output.name}.{os.getpid()}")
        shutil.copy2(linked, arrived)
        arrived.replace(output)
    return output


def usable_tiers(command: list[str]) -> dict[str, tuple[str, ...]]:
    """The tiers of this machine that there are files for and flags the compiler knows."""
    machine = platform.machine()
    tiers = TIERS.get(_ALIASES.get(machine, machine), {})
    present = {tier_of(source) for source in SOURCES.glob("*.cpp")}
    return {name: flags for name, flags in tiers.items() if name in present and _accepts(command, flags)}


def plan(tiers: dict[str, tuple[str, ...]], flags: tuple[str, ...]) -> dict[Path, list[str]]:
    """Every source to compile, with its options."""
    defined = [f"-DMOTE_WITH_{name.upper()}" for name in tiers]
    return {
        source: [*COMMON, *flags, *defined, *tiers.get(tier_of(source) or "", ())]
        for source in sorted(SOURCES.glob("*.cpp"))
        if tier_of(source) in (None, *tiers)
    }


def tier_of(source: Path) -> str | None:
    """The tier that a file's name ends in; None for a file of every machine."""
    ending = source.stem.rpartition("_")[2]
    return ending if ending in _EVERY_TIER else None


def _accepts(command: list[str], flags: tuple[str, ...]) -> bool:
    probe = [*command, "-std=c++17", *flags, "-fsyntax-only", "-x", "c++", os.devnull]
    try:
        return subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")


def main() -> int:
    """Build, and say where the library is or why there is none."""
    try:
        made = build()
    except BuildError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{made}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
