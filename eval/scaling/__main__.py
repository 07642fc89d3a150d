"""`python -m eval.scaling`: write the tables of docs/scaling.md; `--check` only compares.

`--measure` first trains with one and two processes on this machine (minutes; nothing else should run) and keeps what
was found in eval/results/scaling.json.
"""

from __future__ import annotations

import argparse
import difflib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from eval.scaling.measure import compared
from eval.scaling.shape import Shape
from eval.scaling.tables import DOCUMENT, RESULTS, filled

MEASURED = Shape(hidden=512, inner=1536, layers=4, experts=4, vocabulary=2048, length=256, steps=5)


def main() -> int:
    """0 when the page is written, or holds; 1 when it does not."""
    parser = argparse.ArgumentParser(prog="python -m eval.scaling", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the page is not what is")
    parser.add_argument("--measure", action="store_true", help="measure this machine first")
    arguments = parser.parse_args()
    if arguments.measure:
        rate = _exchange_rate()
        RESULTS.write_text(json.dumps({"bytes_per_second": rate, "runs": compared(MEASURED, rate)}, indent=2) + "\n")
    before = DOCUMENT.read_text()
    made = filled(before)
    if not arguments.check:
        DOCUMENT.write_text(made)
        return 0
    print(*difflib.unified_diff(before.splitlines(), made.splitlines(), "written", "found", "", "", 0), sep="\n")
    return int(before != made)


def _exchange_rate() -> float:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rate"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]
        subprocess.run([*launcher, "eval.scaling.bandwidth", str(output)], check=True, capture_output=True, timeout=300)
        return float(output.read_text())


if __name__ == "__main__":
    sys.exit(main())
