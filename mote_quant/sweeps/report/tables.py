"""The tables of a sweep: text for people, with the bare values beside it to sort by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mote_quant.memory.units import human_bytes
from mote_quant.sweeps.report.fronts import fronts
from mote_quant.sweeps.report.metrics import Kind, heading, kind_of
from mote_quant.sweeps.report.statistics import (
    ACCOUNTINGS,
    Contender,
    Difference,
    Document,
    Spread,
    contenders,
    number,
    paired,
)

Value = float | str | None
Cell = tuple[str, Value]
"""What is shown, and the bare value."""
NOTHING: Cell = ("", None)
_AFTER_SIZES = (
    "kl_dense",
    "agreement_dense",
    "kl_unquantized",
    "agreement_unquantized",
    "unquantized_loss",
    "load_min",
    "load_max",
    "entropy",
    "prompt_tokens_per_s",
    "decode_tokens_per_s",
    "peak_resident_bytes",
    "train_seconds",
)


@dataclass(frozen=True)
class Table:
    """A titled table: `rows` of text under `header`; `values` are the same cells as numbers or text to sort by."""

    title: str
    header: list[str]
    rows: list[list[str]]
    values: list[list[Value]]


def tables(document: Document) -> list[Table]:
    """Every table that has something to say."""
    every = (contender_table, control_table, calibration_table, grid_table, misfit_table, failure_table)
    return [table for table in (build(document) for build in every) if table.rows]


def brief_tables(document: Document) -> list[Table]:
    """What a terminal has room for; the report has the rest."""
    full = contender_table(document)
    kept = [index for index, head in enumerate(full.header) if head in _brief_columns(document)]
    brief = Table(
        full.title,
        [full.header[index] for index in kept],
        [[row[index] for index in kept] for row in full.rows],
        [[row[index] for index in kept] for row in full.values],
    )
    parts = (brief, control_table(document), grid_table(document), failure_table(document))
    return [table for table in parts if table.rows]


def _brief_columns(document: Document) -> set[str]:
    sweep = document["sweep"]
    return {"contender", "group", heading(sweep["score"], sweep), f"{sweep['match']} bytes", "learning rate", "seeds"}


def contender_table(document: Document) -> Table:
    """One row a contender, best score first; only the columns somebody has."""
    sweep = document["sweep"]
    score = sweep["score"]
    best = fronts(document)[sweep["match"]]
    lines = sorted(contenders(document), key=lambda contender: _rank(contender, document))
    columns: dict[str, Callable[[Contender], Cell]] = {
        "contender": lambda contender: _text(contender.name),
        "group": lambda contender: _text(contender.group),
        **{heading(key, sweep): _metric(key, sweep) for key in _first_metrics(lines, score)},
        **{f"{accounting} bytes": _size(accounting) for accounting in ACCOUNTINGS},
        f"front ({sweep['match']})": lambda contender: _text("yes") if contender in best else NOTHING,
        "learning rate": _learning_rate,
        **{heading(key, sweep): _metric(key, sweep) for key in _AFTER_SIZES},
        "seeds": lambda contender: (str(len(contender.values(score))), float(len(contender.values(score)))),
    }
    return _table("Contenders", columns, lines)


def calibration_table(document: Document) -> Table:
    """Calibration tokens an expert saw, for each contender that was calibrated."""
    keys = ("calibration_tokens_min", "calibration_tokens_mean")
    lines = [contender for contender in contenders(document) if any(key in contender.metrics for key in keys)]
    columns: dict[str, Callable[[Contender], Cell]] = {
        "contender": lambda contender: _text(contender.name),
        "fewest": _metric(keys[0], document["sweep"]),
        "mean": _metric(keys[1], document["sweep"]),
    }
    return _table("Calibration tokens an expert saw", columns, lines)


def control_table(document: Document) -> Table:
    """Each line beside the one that differs from it in one thing only, paired by seed."""
    sweep = document["sweep"]
    kind = kind_of(sweep["score"], sweep)
    named = {contender.name: contender for contender in contenders(document)}
    pairs = [(named[a], named[b]) for a, b in sweep.get("controls", {}).items() if a in named and b in named]
    found = [(a, b, paired(a, b, sweep["score"], higher_is_better=kind.higher_is_better)) for a, b in pairs]
    columns: dict[str, Callable[[Any], Cell]] = {
        "contender": lambda row: _text(row[0].name),
        "its control": lambda row: _text(row[1].name),
        f"better by ({kind.apart})": lambda row: _difference(row[2], kind),
        "seeds": lambda row: (str(len(row[2].seeds)), float(len(row[2].seeds))),
    }
    return _table("Beside their controls", columns, [row for row in found if row[2] is not None])


def _difference(found: Difference, kind: Kind) -> Cell:
    text = f"{kind.number(found.mean)} ± {kind.number(found.sd)}" if found.sd is not None else kind.number(found.mean)
    return text, found.mean


def grid_table(document: Document) -> Table:
    """The learning rates tried for each family, and which was taken."""
    columns: dict[str, Callable[[Mapping[str, Any]], Cell]] = {
        "family": lambda row: _text(row["family"]),
        "learning rate": lambda row: _plain(row.get("learning_rate")),
        "validation loss": lambda row: _plain(row.get("validation")),
        "chosen": _chosen,
    }
    return _table("Learning rates tried", columns, document.get("grid") or [])


def _chosen(row: Mapping[str, Any]) -> Cell:
    if not row.get("chosen"):
        return NOTHING
    return _text("yes, at the edge of the grid" if row.get("edge") else "yes")


def misfit_table(document: Document) -> Table:
    """The contenders no recipe of which fits a budget, with the reason."""
    return _listed("What does not fit", ("contender", "budget", "why"), document.get("misfits") or [])


def failure_table(document: Document) -> Table:
    """The cells that failed, with the error."""
    return _listed("What failed", ("contender", "seed", "cell", "error"), document.get("failures") or [])


def _table(title: str, columns: Mapping[str, Callable[[Any], Cell]], lines: Sequence[Any]) -> Table:
    """One row a line; a column that says nothing in any of them is left out."""
    cells = {head: [column(line) for line in lines] for head, column in columns.items()}
    kept = {head: found for head, found in cells.items() if any(text for text, _ in found)}
    rows = list(zip(*kept.values(), strict=True))
    return Table(title, list(kept), [[text for text, _ in row] for row in rows], [[v for _, v in row] for row in rows])


def _listed(title: str, keys: Sequence[str], lines: Sequence[Mapping[str, Any]]) -> Table:
    return _table(title, {key: _looked_up(key) for key in keys}, lines)


def _looked_up(key: str) -> Callable[[Mapping[str, Any]], Cell]:
    return lambda row: _plain(row.get(key))


def _rank(contender: Contender, document: Document) -> tuple[bool, float]:
    """Best first, those without a score last."""
    found = contender.score(document["sweep"]["score"])
    sign = -1.0 if document["sweep"]["higher_is_better"] else 1.0
    return found is None, sign * found.mean if found else 0.0


def _first_metrics(lines: Iterable[Contender], score: str) -> list[str]:
    """The score, then every other result of a task."""
    measured = dict.fromkeys(key for contender in lines for key in contender.metrics)
    results = ("accuracy", "loss", "perplexity", "bits_per_byte")
    return list(dict.fromkeys([score, *results, *(key for key in measured if "." in key)]))


def _metric(key: str, sweep: Mapping[str, Any]) -> Callable[[Contender], Cell]:
    kind = kind_of(key, sweep)
    return lambda contender: _spread(contender.score(key), kind)


def _spread(found: Spread | None, kind: Kind) -> Cell:
    if found is None:
        return NOTHING
    around = "" if not found.sd else f" ± {kind.number(found.sd)}"
    return kind.number(found.mean) + around, found.mean


def _size(accounting: str) -> Callable[[Contender], Cell]:
    return lambda contender: (human_bytes(contender.size(accounting)), float(contender.size(accounting)))


def _learning_rate(contender: Contender) -> Cell:
    """The rate of every seed; several only where a sweep chose one for each."""
    rates = dict.fromkeys(number(point.get("learning_rate")) for point in contender.points)
    known = [rate for rate in rates if rate is not None]
    return (", ".join(f"{rate:g}" for rate in known), known[0]) if known else NOTHING


def _text(text: str) -> Cell:
    return text, text


def _plain(value: Any) -> Cell:
    found = number(value)
    if found is not None:
        return f"{found:.6g}", found
    return NOTHING if value is None else _text(str(value))
