"""`mote-quant doctor`: whether it can work here, and how well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import typer

from mote_quant.cli.options import JsonOption
from mote_quant.cli.output import Table, print_json, print_lines, print_tables
from mote_quant.cli.session import guarded

UNUSABLE = 2


@guarded
def doctor(context: typer.Context, as_json: JsonOption = False) -> None:
    """Look at this machine and its packages: versions, extras, kernels, GPU, memory, and what is known to go wrong.

    Downloads nothing, changes nothing. Exit code 2 when mote-quant cannot work here.
    """
    from mote_quant.doctor import diagnose

    found = diagnose()
    if as_json:
        print_json(found)
    else:
        print_tables(doctor_tables(found))
        print_lines(_verdict(found))
    if not found["usable"]:
        raise typer.Exit(UNUSABLE)


def doctor_tables(found: dict[str, Any]) -> Iterator[Table]:
    """Hardware, kernels, versions, extras."""
    header = ["what", "value"]
    yield "This machine", header, list(_machine(found))
    yield "Kernels", ["operation", "implementation"], [[*pair] for pair in found["kernels"].items()]
    yield "Versions", header, [[name, number or "not installed"] for name, number in found["versions"].items()]
    rows = [[extra["name"], _installed(extra), extra["purpose"], extra["install"]] for extra in found["extras"]]
    yield "Extras", ["extra", "installed", "for", "how"], rows


def _machine(found: dict[str, Any]) -> Iterator[list[str]]:
    from mote_quant.memory.units import human_bytes

    cpu, machine, compiler = found["cpu"], found["machine"], found["compiler"]
    yield ["processor", f"{cpu['model'] or 'unknown'} ({cpu['machine']}), {cpu['cores']} cores"]
    yield ["features", " ".join(cpu["features"]) or "none that matters here"]
    yield ["CPU kernels", cpu.get("level") or f"none: {cpu.get('reason') or 'torch cannot be used'}"]
    yield ["threads", str(cpu["threads"] or "unknown")]
    yield ["C++ compiler", compiler["command"] or f"none: {compiler['reason']}"]
    for gpu in found["accelerators"]:
        yield ["GPU", f"{gpu['name']}, {human_bytes(gpu['memory'])}, compute capability {gpu['capability']}"]
    if not found["accelerators"]:
        yield ["GPU", "none that torch can use"]
    for name, label in (("total_memory", "memory"), ("free_memory", "free memory"), ("free_disk", "free disk, here")):
        yield [label, "unknown" if machine[name] is None else human_bytes(machine[name])]
    yield ["Hugging Face Hub", "off (HF_HUB_OFFLINE)" if found["offline"] else "only for models and data you name"]


def _installed(extra: dict[str, Any]) -> str:
    return f"no: {', '.join(extra['missing'])}" if extra["missing"] else "yes"


def _verdict(found: dict[str, Any]) -> Iterator[str]:
    for finding in found["findings"]:
        yield f"{finding['severity']}: {finding['what']}"
        yield f"  what to do: {finding['advice']}"
    yield "mote-quant can work here." if found["usable"] else "mote-quant cannot work here."
