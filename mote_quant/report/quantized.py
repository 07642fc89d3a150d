"""What a `quantize` step noted: how each module was quantized, and how well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, median
from typing import Any

from mote_quant.report.figures import NONE, Table, figure, noted, percent

Note = Mapping[str, Any]
LONG = 24
"""Tables with more rows than this are kept apart from the others."""


def callouts(note: Note) -> list[list[str]]:
    """(where, what) of everything that went another way than the recipe says."""
    modules = note.get("modules", {}).values()
    fallen = Counter((_role(module), module["fallback"]) for module in modules if module.get("fallback"))
    few = Counter(_role(module) for module in modules if module.get("few_tokens"))
    short = note.get("calibration", {}).get("short")
    rows = [[_count(count, role), text] for (role, text), count in fallen.items()]
    rows += [
        [_count(count, role), "saw fewer tokens than they have inputs: use more samples"] for role, count in few.items()
    ]
    return rows + ([["calibration", short]] if short else [])


def _role(module: Note) -> str:
    return str(module.get("role", ""))


def _count(count: int, role: str) -> str:
    return f"{count:,} {role} module{'s' if count > 1 else ''}".replace("  ", " ")


def summaries(note: Note) -> Iterator[Table]:
    """The short tables: roles, outputs, calibration, and what is short of the rest."""
    if note.get("modules"):
        yield "How each role was quantized", ROLE_HEADER, _roles(note["modules"].values())
    if note.get("outputs"):
        yield "How far the outputs moved", OUTPUT_HEADER, _outputs(note["outputs"])
    yield from (table for table in _others(note) if len(table[2]) <= LONG)


def details(note: Note) -> Iterator[Table]:
    """The long tables: every module, and what is long of the rest."""
    if note.get("modules"):
        rows = [[name, *_module(module)] for name, module in note["modules"].items()]
        yield "Every module", ["module", *COLUMNS], rows
    yield from (table for table in _others(note) if len(table[2]) > LONG)


OTHERS = {"calibration": "Calibration", "allocation": "Formats chosen within the budget", "skip": "Experts skipped"}


def _others(note: Note) -> Iterator[Table]:
    for key, title in OTHERS.items():
        if note.get(key):
            yield from noted(title, note[key])


ROLE_HEADER = ["role", "modules", "how", "bits", "weight error: mean / max", "output error: mean / max"]
ROLE_HEADER += ["tokens: least / median", "seconds"]


def _roles(modules: Sequence[Note]) -> list[list[str]]:
    by_role: dict[str, list[Note]] = {}
    for module in modules:
        by_role.setdefault(_role(module) or NONE, []).append(module)
    return [[role, f"{len(found):,}", *_role_row(found)] for role, found in by_role.items()]


def _role_row(modules: list[Note]) -> list[str]:
    ways = Counter(_way(module) for module in modules)
    return [
        ", ".join(f"{way} ({count})" if len(ways) > 1 else way for way, count in ways.most_common()),
        _over(modules, "bits", fmean),
        _over(modules, "weight_error", fmean, max),
        _over(modules, "output_error", fmean, max),
        _over(modules, "tokens", min, median),
        _over(modules, "seconds", sum),
    ]


def _way(module: Note) -> str:
    parts = [module["format"], _group(module), module.get("method"), module.get("backend")]
    return " ".join(part for part in parts if part)


def _group(module: Note) -> str:
    size = module.get("group_size")
    return "" if size in (None, -1) else f"g{size}"


def _over(modules: list[Note], key: str, *how: Callable[[list[float]], float]) -> str:
    values = [module[key] for module in modules if module.get(key) is not None]
    return " / ".join(figure(of(values)) for of in how) if values else NONE


COLUMNS = ["role", "format", "group", "method", "bits", "weight error", "output error", "tokens", "seconds", "remark"]


def _module(module: Note) -> list[str]:
    method = " ".join(part for part in (module.get("method"), module.get("backend")) if part)
    remark = module.get("fallback") or ("fewer tokens than inputs" if module.get("few_tokens") else "")
    figures = [figure(module.get(key)) for key in ("bits", "weight_error", "output_error", "tokens", "seconds")]
    return [_role(module), module["format"], _group(module), method, *figures, remark]


OUTPUT_HEADER = ["after quantizing", "KL (nats) before", "after", "same top token before", "after"]


def _outputs(outputs: Note) -> list[list[str]]:
    rows = [
        [
            row["role"],
            figure(row["kl_before"]),
            figure(row["kl_after"]),
            percent(row["agreement_before"]),
            percent(row["agreement_after"]),
        ]
        for row in outputs.get("roles", [])
    ]
    places = outputs.get("tokens", outputs.get("positions"))
    whole = "everything" if places is None else f"everything ({places:,} tokens)"
    return [*rows, [whole, "", figure(outputs.get("kl")), "", percent(outputs.get("agreement"))]]
