"""A plan as people and programs read it: tables or JSON, with what carrying it out takes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mote_quant.cli.budget import room_tables
from mote_quant.cli.estimate import estimate_tables, manner
from mote_quant.cli.output import Table, print_json, print_lines, print_tables

if TYPE_CHECKING:
    from mote_quant.estimate import Estimate
    from mote_quant.memory.ledger import Ledger
    from mote_quant.moe import MoteLayout
    from mote_quant.planning import Plan
    from mote_quant.sweeps.room import RecipeRoom


def show_plan(planned: Plan, as_json: bool, estimate: Estimate, room: RecipeRoom | None = None) -> None:
    """Print a plan, as tables or as JSON, with what it takes to carry it out, and the room it leaves."""
    if as_json:
        print_json(planned.to_dict() | {"estimate": estimate.to_dict()} | ({} if room is None else room.to_dict()))
        return
    print_tables([*plan_tables(planned), *(room_tables(room) if room else ()), *estimate_tables(estimate)])
    print_lines([manner(estimate), *(f"Careful: {warning}." for warning in estimate.warnings()), ""])


def plan_tables(planned: Plan) -> Iterator[Table]:
    """Mixture layers, training, rules, roles, totals; everything beside the dense model."""
    yield "Mixture layers", ["layers", "first", "last", "experts", "top-k", "shared", "combine"], _mixtures(planned)
    yield "What trains", ["step", "trained", "frozen"], _trained(planned)
    yield "What each rule covers", ["target", "format", "tensors", "weights", "before", "after"], _covered(planned)
    header = ["role", "parameters", "bits each", "stored", "resident", "dense: parameters", "dense: stored"]
    yield "What it will weigh", header, _roles(planned.dense, planned.result)
    yield "Altogether", ["accounting", "dense", "result", "of dense"], _totals(planned.dense, planned.result)


def _mixtures(planned: Plan) -> list[list[str]]:
    """One row for each run of layers that are built alike."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for layout in planned.layouts:
        shared = "dense FFN" if layout.shared else "none"
        alike.setdefault((_experts(layout), str(layout.top_k), shared, layout.combine), []).append(layout.path)
    return [[str(len(paths)), paths[0], paths[-1], *built] for built, paths in alike.items()]


def _experts(layout: MoteLayout) -> str:
    kind = f" of 1/{layout.split} width" if layout.split > 1 else ""
    return f"{layout.experts}{kind}" if layout.lora_rank is None else f"{layout.experts} of rank {layout.lora_rank}"


def _trained(planned: Plan) -> list[list[str]]:
    return [
        [str(index), _counts(row["trained"]), _counts(row["frozen"])] for index, row in enumerate(planned.trained, 1)
    ]


def _counts(parameters: dict[str, int]) -> str:
    return ", ".join(f"{role} {count:,}" for role, count in parameters.items())


def _covered(planned: Plan) -> list[list[str]]:
    from mote_quant.memory.units import human_bytes

    return [
        [
            row.target,
            row.format or "(untouched)",
            f"{row.tensors:,}",
            f"{row.weights:,}",
            human_bytes(row.bytes_before),
            human_bytes(row.bytes_after),
        ]
        for row in planned.coverage
    ]


def _roles(dense: Ledger, result: Ledger) -> list[list[str]]:
    from mote_quant.memory.units import human_bytes

    rows = []
    for role in dict.fromkeys([*result.roles, *dense.roles]):
        now, before = result.roles.get(role), dense.roles.get(role)
        sizes = ["", "", "", ""]
        if now is not None:
            sizes = [
                f"{now.parameters:,}",
                f"{now.bits:.2f}",
                human_bytes(now.stored_bytes),
                human_bytes(now.resident_bytes),
            ]
        was = ["", ""] if before is None else [f"{before.parameters:,}", human_bytes(before.stored_bytes)]
        rows.append([role, *sizes, *was])
    return rows


def _totals(dense: Ledger, result: Ledger) -> list[list[str]]:
    """The three accountings of design 4."""
    from mote_quant.memory.units import human_bytes

    gib = 2**30
    sizes: dict[str, tuple[Any, Any]] = {
        "experts, as papers count": (round(gib * dense.paper_gib["experts"]), round(gib * result.paper_gib["experts"])),
        "stored (the file)": (dense.stored_bytes, result.stored_bytes),
        "resident (at run time)": (dense.resident_bytes, result.resident_bytes),
    }
    return [
        [name, human_bytes(before), human_bytes(after), f"{after / before:.0%}" if before else ""]
        for name, (before, after) in sizes.items()
    ]
