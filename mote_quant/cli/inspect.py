"""`mote-quant inspect`: what a saved model holds, checked against what it says of itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from mote_quant.cli.options import JsonOption
from mote_quant.cli.output import Table, print_json, print_lines, print_tables
from mote_quant.cli.progress import watching
from mote_quant.cli.session import guarded
from mote_quant.errors import RequestError


@guarded
def inspect(
    context: typer.Context,
    folder: Annotated[Path | None, typer.Argument(metavar="[DIR]", help="A model folder.", show_default=False)] = None,
    kernels: Annotated[
        bool, typer.Option("--kernels", help="Say what computes packed weights on this machine.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Check a saved model's files, and say what it weighs role by role.

    \b
    Examples:
      mote-quant inspect runs/mote
      mote-quant inspect runs/mote --json | jq .roles.routed
      mote-quant inspect --kernels
    """
    if folder is None and not kernels:
        raise RequestError("name a model folder to inspect, or ask for --kernels")
    found: dict[str, Any] = {}
    with watching(context.obj):
        if folder is not None:
            from mote_quant import inspection

            found |= inspection.inspect(folder)
        if kernels:
            from mote_quant.kernels.describe import describe

            found |= describe()
    if as_json:
        print_json(found)
    else:
        print_tables([*(inspection_tables(found) if folder else ()), *(kernel_tables(found) if kernels else ())])
        print_lines(_notes(folder, found) if folder else ())


def _notes(folder: Path, found: dict[str, Any]) -> Iterator[str]:
    from mote_quant.inspection import made_elsewhere

    if made_elsewhere(folder):
        kind = "mixture" if "routed" in found["roles"] else "dense model"
        yield (
            f"{folder} is a {kind} that mote-quant did not make; `mote-quant plan RECIPE --model {folder}` says what "
            "it would become"
        )


def inspection_tables(found: dict[str, Any]) -> Iterator[Table]:
    """Roles, totals, routers, kernels, provenance."""
    from mote_quant.memory.units import human_bytes

    roles = [
        [
            role,
            f"{w['parameters']:,}",
            f"{w['bits']:.2f}",
            human_bytes(w["stored_bytes"]),
            human_bytes(w["resident_bytes"]),
        ]
        for role, w in found["roles"].items()
    ]
    parameters = sum(weight["parameters"] for weight in found["roles"].values())
    total = ["total", f"{parameters:,}", "", human_bytes(found["stored_bytes"]), human_bytes(found["resident_bytes"])]
    yield "What it weighs", ["role", "parameters", "bits each", "stored", "resident"], [*roles, total]
    paper = [[role, human_bytes(round(size * 2**30))] for role, size in found["paper_gib"].items()]
    yield "As papers count it", ["feed-forward experts", "size"], paper
    yield "Routers, at the end of training", ["layer", "load", "balance", "entropy (nats)"], _routers(found["router"])
    yield _kernels(found)
    yield "Provenance", ["what", "value"], _provenance(found["provenance"])


def kernel_tables(found: dict[str, Any]) -> Iterator[Table]:
    """Which implementation every operation takes, and what the CPU's can use."""
    cpu = found["cpu"]
    yield _kernels(found)
    rows = [
        ["level in force", cpu["level"] or f"none: {cpu['reason']}"],
        ["levels here", ", ".join(cpu["levels"]) or "none"],
        ["threads", str(found["threads"])],
    ]
    yield "CPU kernels", ["what", "value"], rows


def _kernels(found: dict[str, Any]) -> Table:
    return "Kernels", ["operation", "implementation"], [[*pair] for pair in found["kernels"].items()]


def _routers(router: dict[str, Any]) -> list[list[str]]:
    return [
        [layer, " ".join(f"{share:.2f}" for share in r["load"]), f"{r['balance']:.3f}", f"{r['entropy']:.3f}"]
        for layer, r in router.items()
    ]


def _provenance(made: dict[str, Any]) -> list[list[str]]:
    """One row a value; the recipe and the fingerprint are for `--json`."""
    packages = [f"{name} {version}" for name, version in made.get("packages", {}).items()]
    short = [
        [key, str(value)] for key, value in made.items() if isinstance(value, str | int) and "\n" not in str(value)
    ]
    return [*short, *([["packages", ", ".join(packages)]] if packages else [])]
