"""Convert a checkpoint of a real shape with random weights, and run it: `python -m eval.scale Qwen2.5-3B --work DIR`.

Writes the checkpoint, runs `mote-quant apply` on it and then a fresh process that loads what came out, each watched
from outside for its peak resident memory. Figures go to DIR/scale.json, with --record to eval/results/scale.json. DIR
needs some 1.6 times the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from eval.scale.checkpoint import write_checkpoint
from mote_quant.hf.saving import stored_bytes
from mote_quant.memory.ledger import GIB

RESULTS = Path(__file__).resolve().parent.parent / "results" / "scale.json"
RECIPES = Path(__file__).resolve().parent / "recipes"


def main() -> None:
    """See the module's docstring."""
    arguments = _arguments()
    work = Path(arguments.work) / arguments.shape
    dense, recipe = work / "dense", RECIPES / f"{arguments.recipe}.yaml"
    write_checkpoint(arguments.shape, dense, layers=arguments.layers)
    output = work / arguments.recipe
    apply = ["mote_quant", "apply", str(recipe), "--model", str(dense), "--output", str(output), "--quiet", "--json"]
    converting = _watched(apply)
    report = json.loads(converting.pop("stdout"))
    using = _watched(["eval.scale.use", str(output)])
    row = {
        "shape": arguments.shape,
        "layers": arguments.layers,
        "recipe": arguments.recipe,
        "dense_bytes": stored_bytes(dense),
        "paper_gib": report["bytes"]["paper_gib"],
        "planned_bytes": report["bytes"]["predicted"],
        "file_bytes": stored_bytes(output),
        "convert": converting,
        "use": {**json.loads(using.pop("stdout").splitlines()[-1]), **using},
    }
    _keep(row, RESULTS if arguments.record else Path(arguments.work) / RESULTS.name)
    _say(row)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m eval.scale", description=__doc__)
    parser.add_argument("shape", help="a model whose facts are known, such as Qwen2.5-3B")
    parser.add_argument("--recipe", default="mote", choices=sorted(path.stem for path in RECIPES.glob("*.yaml")))
    parser.add_argument("--layers", type=int, help="only so many layers of it")
    parser.add_argument("--work", required=True, help="where checkpoints go")
    parser.add_argument("--record", action="store_true", help="keep the figures in eval/results")
    return parser.parse_args()


def _watched(module: list[str]) -> dict[str, Any]:
    """Run `python -m module ...`: seconds, peak resident bytes of the process, what it printed."""
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", *module], stdout=subprocess.PIPE, text=True)
    printed = process.communicate()[0] if process.stdout is None else process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(module)} ended with {process.returncode}")
    return {"seconds": time.monotonic() - started, "peak_bytes": 1024 * usage.ru_maxrss, "stdout": printed}


def _keep(row: dict[str, Any], path: Path) -> None:
    known = json.loads(path.read_text()) if path.exists() else []
    same = ("shape", "layers", "recipe")
    rows = [other for other in known if any(other[key] != row[key] for key in same)]
    path.write_text(json.dumps([*rows, row], indent=2) + "\n")


def _say(row: dict[str, Any]) -> None:
    convert, use = row["convert"], row["use"]
    exact = "as planned" if row["planned_bytes"] == row["file_bytes"] else f"planned {row['planned_bytes']} bytes"
    lines = [
        f"{row['shape']}, {row['recipe']}: dense {_gib(row['dense_bytes'])} -> {_gib(row['file_bytes'])}, {exact}; "
        f"experts {row['paper_gib']['experts']:.2f} GiB by the paper's accounting",
        f"converted in {convert['seconds']:.0f} s, peak {_gib(convert['peak_bytes'])}",
        f"loaded in {use['load_seconds']:.1f} s, resident {_gib(use['loaded']['resident'])}",
    ]
    lines += [_line(prompt) for prompt in use["prompts"]]
    sys.stdout.write("\n".join(lines) + "\n")


def _line(prompt: dict[str, Any]) -> str:
    return (
        f"after {prompt['given']} tokens and {prompt['tokens']} new ones in {prompt['seconds']:.1f} s: "
        f"resident {_gib(prompt['resident'])}, {prompt['visited']} of {prompt['experts']} experts visited, "
        f"at most {prompt['read_of_others']:.1%} of any other read"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.2f} GiB"


if __name__ == "__main__":
    main()
