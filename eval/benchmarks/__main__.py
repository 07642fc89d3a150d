"""Run the benchmark, print the table of the figures to reach, and write it down: docs/benchmarks.md."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks import parts, report, roofline
from eval.benchmarks.machine import has_amx, machine
from eval.benchmarks.rows import Row
from eval.benchmarks.scale import FULL, QUICK

RESULTS = Path(__file__).parent.parent / "results"
FAILED = 3
_ALL = ",".join(parts.PARTS)


def main(arguments: Sequence[str] | None = None) -> int:
    """0, or 3 where a part failed: the others are written down all the same."""
    parser = argparse.ArgumentParser(prog="python -m eval.benchmarks", description=__doc__)
    parser.add_argument("--only", type=_names, default=list(parts.PARTS), help=f"some of {_ALL}; others are kept")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--output", type=Path, default=RESULTS)
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    scale = QUICK if given.quick else FULL
    result = parts.run(given.only, scale)
    limits = machine(scale.sweep_bytes) | {"skipped": result.skipped | result.failed}
    given.output.mkdir(parents=True, exist_ok=True)
    rows = _kept(given.output / "bench.json", given.only) | result.rows
    _write(given.output, rows, limits, scale.headline[0])
    return FAILED if result.failed else 0


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in parts.PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no part is called {', '.join(unknown)}; there are {_ALL}")
    return names


def _kept(path: Path, measured: Sequence[str]) -> dict[str, list[Row]]:
    """The rows of an earlier run of other parts."""
    kept: dict[str, list[Row]] = {}
    for values in json.loads(path.read_text()) if path.exists() else []:
        if values.get("part") and values["part"] not in measured:
            lists = {key: tuple(value) for key, value in values.items() if isinstance(value, list)}
            kept.setdefault(values["part"], []).append(Row.of(values | lists))
    return kept


def _write(folder: Path, by_part: Mapping[str, list[Row]], limits: Mapping[str, Any], shape: tuple[int, int]) -> None:
    amx, rows = has_amx(), [row for part in by_part.values() for row in part]
    written = [row.to_dict(amx) | {"part": name} for name, part in by_part.items() for row in part]
    (folder / "bench.json").write_text(json.dumps(written, indent=1) + "\n")
    (folder / "bench-machine.json").write_text(json.dumps(limits, indent=2) + "\n")
    (folder / "bench.md").write_text(report.markdown(rows, limits, amx))
    roofline.draw(rows, limits, shape, folder / "bench-roofline.png")
    for line in report.table(rows, limits, amx):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, report.WIDTHS, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main())
