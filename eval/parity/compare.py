"""The command line of a comparison: quantize by every variant of a library, add a row of perplexity for each."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

from eval.parity.gptq import Setting, Weights, table
from eval.parity.stories import Tokens, perplexity

SAMPLES = 64

Quantizer = Callable[[Path, Tensor, Setting], Weights]
Libraries = Mapping[str, tuple[Quantizer, Mapping[str, dict[str, Any]]]]
"""What quantizes, and the options of each variant."""


def run(libraries: Libraries, arguments: argparse.Namespace) -> None:
    """One library's rows."""
    tokens = Tokens.load(arguments.tokens)
    quantize, variants = libraries[arguments.library]
    for (variant, options), bits, size in product(variants.items(), arguments.bits, arguments.group_sizes):
        setting = Setting(variant, bits, size, options)
        started = time.monotonic()
        weights = quantize(arguments.model, tokens.calibration[:SAMPLES], setting)
        seconds = round(time.monotonic() - started, 1)
        found = {"perplexity": perplexity(arguments.model, weights, tokens.test), "modules": len(weights)}
        row = {"library": arguments.library, "tokens": arguments.tokens.stem, **asdict(setting), **found}
        with arguments.rows.open("a") as file:
            file.write(json.dumps(row | {"seconds": seconds}) + "\n")


def main(libraries: Libraries, description: str | None) -> None:
    """`run` one of the libraries, or print the `table` of all rows."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    ran = commands.add_parser("run", help="quantize and measure")
    ran.add_argument("--library", choices=libraries, required=True)
    ran.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    ran.add_argument("--group-sizes", type=int, nargs="+", default=[64, 32])
    ran.add_argument("--model", type=Path, required=True)
    ran.add_argument("--tokens", type=Path, required=True)
    for command in (ran, commands.add_parser("table", help="print what was measured")):
        command.add_argument("--rows", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(libraries, arguments)
    else:
        print(table([json.loads(line) for line in arguments.rows.read_text().splitlines()]))
