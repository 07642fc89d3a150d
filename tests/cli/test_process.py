"""The program as a process of its own."""

from __future__ import annotations

import subprocess
import sys

import mote_quant


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=120)


def test_python_m_mote_quant() -> None:
    result = _python("-m", "mote_quant", "--version")
    assert (result.returncode, result.stdout) == (0, f"mote-quant {mote_quant.__version__}\n")


def test_a_wrong_request_exits_with_2() -> None:
    result = _python("-m", "mote_quant", "recipes", "show", "no-such-recipe")
    assert result.returncode == 2
    assert result.stderr.startswith("error: no-such-recipe")


HELP = """
import sys
from mote_quant.cli import main
sys.argv = ["mote-quant", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "transformers", "datasets", "sklearn", "matplotlib", "numpy"}
    print("loaded:", sorted(heavy & set(sys.modules)))
"""


def test_help_loads_nothing_heavy() -> None:
    for arguments in (["--help"], ["apply", "--help"]):
        result = _python("-c", HELP, *arguments)
        assert result.returncode == 0
        assert "Usage" in result.stdout
        assert "loaded: []" in result.stdout


INTERRUPTED = """
import os, signal, sys, time
from pathlib import Path
import mote_quant.sweeps.run
from mote_quant.cli import main

# A shell that starts this in the background has it ignore the signal.
signal.signal(signal.SIGINT, signal.default_int_handler)

def sweep(source, output, *, options):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)

mote_quant.sweeps.run.sweep = sweep
sys.argv = ["mote-quant", "demo"]
main()
"""


def test_ctrl_c_exits_with_130_and_no_traceback() -> None:
    result = _python("-c", INTERRUPTED)
    assert result.returncode == 130
    assert (
        result.stderr == "interrupted\nRun the same command again to resume; what is done so far lies in runs/demo.\n"
    )
