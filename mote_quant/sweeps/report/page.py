"""The sweep as one HTML page that needs no network: picture to play with, recipes one click away, tables without JS."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any

from mote_quant.sweeps.report.finite import finite
from mote_quant.sweeps.report.headline import Headline, caveats, headlines
from mote_quant.sweeps.report.metrics import kind_of, label
from mote_quant.sweeps.report.palette import DARK, LIGHT, styles
from mote_quant.sweeps.report.statistics import ACCOUNTINGS, Contender, Document, contenders
from mote_quant.sweeps.report.tables import Table, tables
from mote_quant.sweeps.report.text import facts

_NOTHING = "nothing to compare"
_MARKS = {
    "ahead": ("▲", "ahead"),
    "behind": ("▼", "behind"),
    "even": ("=", "even"),
    "unsure": ("?", "one seed"),
    "none": ("·", _NOTHING),
}

_MANY = 8
"""More headlines than this are folded away behind their budgets."""


def render_page(document: Document, ours: str | None = None) -> str:
    """The whole page. Whatever the document says is text in it, never markup or code."""
    style = _palette() + _asset("page.css")
    script = _asset("chart.js") + _asset("page.js")
    sweep = document["sweep"]
    return Template(_asset("page.html")).substitute(
        title=_text(sweep["name"]),
        description=_text(sweep.get("description") or ""),
        policy=_policy(style, script),
        style=style,
        script=script,
        headlines=_headlines(document, ours),
        caveats="".join(f"<p>{_text(note)}</p>" for note in caveats(document, ours)),
        facts=_definitions(facts(document)),
        provenance=_definitions(_provenance(document.get("provenance") or {})),
        tables="".join(map(_table, tables(document))),
        data=_embedded(view(document, ours)),
    )


def view(document: Document, ours: str | None = None) -> dict[str, Any]:
    """What the page's script draws: every contender with its sizes, means, spreads, seeds and recipes."""
    sweep, found, looks = document["sweep"], contenders(document), styles(document, ours)
    keys = dict.fromkeys([sweep["score"], *(key for contender in found for key in contender.metrics)])
    return {
        "name": sweep["name"],
        "match": sweep["match"],
        "accountings": list(ACCOUNTINGS),
        "budgets": sweep.get("budgets") or [],
        "metrics": [_metric(key, sweep) for key in keys],
        "groups": [{"name": name, "colour": colour, "shape": shape} for name, (colour, shape) in looks.items()],
        "contenders": [_contender(contender) for contender in found],
    }


def _metric(key: str, sweep: Mapping[str, Any]) -> dict[str, Any]:
    kind = kind_of(key, sweep)
    return {
        "key": key,
        "label": label(key),
        "unit": kind.unit,
        "scale": kind.scale,
        "digits": kind.digits,
        "higher": kind.higher_is_better,
    }


def _contender(contender: Contender) -> dict[str, Any]:
    return {
        "name": contender.name,
        "family": contender.family,
        "group": contender.group,
        "sizes": {accounting: contender.size(accounting) for accounting in ACCOUNTINGS},
        "whole": {name: contender.points[0].get(f"model_{name}_bytes") for name in ("stored", "resident")},
        "rates": list(dict.fromkeys(point.get("learning_rate") for point in contender.points)),
        "metrics": {
            key: {"mean": found.mean, "sd": found.sd, "seeds": contender.values(key)}
            for key, found in contender.metrics.items()
        },
        "recipes": [{"seed": point["seed"], "text": point.get("recipe") or ""} for point in contender.points],
    }


def _asset(name: str) -> str:
    return resources.files(__package__).joinpath("assets", name).read_text(encoding="utf-8")


def _palette() -> str:
    """The groups' colours for both schemes, and a class for each; paper is always light."""
    light, dark = (
        ":root{" + "".join(f"--g{place}:{colour};" for place, colour in enumerate(colours)) + "}"
        for colours in (LIGHT, DARK)
    )
    classes = "".join(f".g{place}{{--c:var(--g{place})}}" for place in range(len(LIGHT)))
    return f"{light}@media screen and (prefers-color-scheme:dark){{{dark}}}{classes}\n"


def _policy(style: str, script: str) -> str:
    """Nothing may be fetched, and only the style and the script of this very page may act."""
    return (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _embedded(value: Any) -> str:
    """JSON that cannot end the element it stands in."""
    text = json.dumps(finite(value), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _text(value: str) -> str:
    return html.escape(value, quote=True)


def _headlines(document: Document, ours: str | None) -> str:
    """A list for each place, all but the first folded where there are many."""
    places: dict[str, list[Headline]] = {}
    for line in headlines(document, ours):
        places.setdefault(line.place, []).append(line)
    if not places:
        return "<p>Nothing to compare yet.</p>"
    shown = sum(map(len, places.values())) <= _MANY
    return "".join(
        f"<details{' open' if shown or not at else ''}><summary>{_text(place)} <span>{_tally(lines)}</span></summary>"
        f"<ul class='headlines'>{''.join(map(_headline, lines))}</ul></details>"
        for at, (place, lines) in enumerate(places.items())
    )


def _tally(lines: Sequence[Headline]) -> str:
    """`3 ahead, 1 even`, for whoever reads no further."""
    counts = {meaning: sum(line.verdict == verdict for line in lines) for verdict, (_, meaning) in _MARKS.items()}
    return ", ".join(f"{count} {meaning}" for meaning, count in counts.items() if count and meaning != _NOTHING)


def _headline(line: Headline) -> str:
    mark, meaning = _MARKS[line.verdict]
    return (
        f"<li class='{line.verdict}'><span class='mark' role='img' title='{meaning}' aria-label='{meaning}'>"
        f"{mark}</span><p>{_text(line.claim)}</p></li>"
    )


def _provenance(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in found.items():
        if value:
            yield key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else str(value)


def _definitions(pairs: Iterator[tuple[str, str]]) -> str:
    return "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in pairs)


def _table(table: Table) -> str:
    """A section with a real table; each cell carries its bare value for the script to sort by."""
    numeric = [any(isinstance(row[at], float) for row in table.values) for at in range(len(table.header))]
    head = "".join(
        f"<th scope='col'{_side(right)}>{_text(name)}</th>" for name, right in zip(table.header, numeric, strict=True)
    )
    body = "".join(
        "<tr>" + "".join(_cell(*cell) for cell in zip(row, values, numeric, strict=True)) + "</tr>"
        for row, values in zip(table.rows, table.values, strict=True)
    )
    title = _text(table.title)
    return (
        f"<section><h2>{title}</h2><div class='scroll' tabindex='0' role='region' aria-label='{title}'>"
        f"<table data-table='{title}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _cell(text: str, value: float | str | None, right: bool) -> str:
    return f"<td{_side(right)} data-v='{_text('' if value is None else str(value))}'>{_text(text)}</td>"


def _side(right: bool) -> str:
    return " class='n'" if right else ""
