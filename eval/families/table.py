"""docs/models.md: its tables, written from the rows, a line a family that says all about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from eval.families import dense, experts
from eval.families.path import YES, Row, Rows
from mote_quant.anatomy.feedforward import SUPPORTED

DOCUMENT = Path(__file__).parents[2] / "docs" / "models.md"

TABLES: Mapping[str, Rows] = {**dense.TABLES, **experts.TABLES}
"""All families, kind by kind."""

_REFUSED = "no: "
_TITLES = {
    "language": "Language models",
    "vision-language": "Vision-language models",
    "experts": "Models that come with experts",
}
_NOTES = {"experts": (experts.NOTE.strip(),)}
_HEAD = """\
# Models

Written by `python -m eval.families`, which builds every family from its config at pico size (two decoder layers, random
weights) and takes it down the whole path; `python -m eval.families --check` says whether this page still holds, and
each line is a test (`tests/test_families.py`). Families are found by the structure of their decoder layers and the
numbers they give, never by name, so a model that is not listed may well work: `mote-quant plan RECIPE --model DIR`
tells. `yes` means:

- **up-cycles**: every decoder layer gets a mixture. With `combine: zero_init` the model puts out what it did, to the
  bit; untrained experts alone, with gates that sum to 1, put it out too, up to rounding.
- **trains**: two steps of training. The loss is finite, latent weights of every layer's experts move, and beside them
  and the routers nothing does, to the bit.
- **quantizes**: attention in int8, the shared expert in int4, routed experts packed; the files weigh what was planned.
- **reloads**: plain `from_pretrained` gives the same class, mixtures and logits (up to rounding), images included.
- **generates**: greedy decoding writes the same with a cache and without.
- **exports**: the dense model, its feed-forward blocks and attention quantized to int4 by GPTQ, is written as a GPTQ
  checkpoint and read back to the same codes. (Mixtures are not exported: no other runtime has the layer.)
"""


def document(rows: Iterable[Row]) -> str:
    """The whole page."""
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row.kind, []).append(row)
    return "\n".join([_HEAD, *(_table(kind, own) for kind, own in by_kind.items())])


def line(row: Row) -> str:
    """A row as a line of its table, with the reasons for every `no` at its end."""
    cells = ["no" if result.startswith(_REFUSED) else result for result in _results(row)]
    return f"| {' | '.join([row.family, *cells, '; '.join(_reasons(row))])} |"


def _results(row: Row) -> list[str]:
    return list(row.results.values())


def _table(kind: str, rows: list[Row]) -> str:
    columns = list(rows[0].results)
    whole = sum(set(_results(row)) == {YES} for row in rows)
    lines = [
        f"## {_TITLES[kind]}",
        *_NOTES.get(kind, ()),
        f"{len(rows)} families, {whole} of them with `yes` throughout.",
        f"| {' | '.join(['family', *columns, 'what is missing'])} |\n{'|---' * (len(columns) + 2)}|",
    ]
    return "\n\n".join(lines) + "\n" + "".join(f"{line(row)}\n" for row in rows)


def _reasons(row: Row) -> Iterator[str]:
    """Why not, in the words of the errors, each with the columns it stands against."""
    columns: dict[str, list[str]] = {}
    for column, result in row.results.items():
        if result.startswith(_REFUSED):
            words = (
                result.removeprefix(_REFUSED)
                .replace(f"; {SUPPORTED}", "")
                .replace(f"\n{SUPPORTED}", "")
                .replace("\n", "; ")
            )
            columns.setdefault(words.replace("|", "/"), []).append(column)
    yield from (f"{', '.join(stopped)}: {words}" for words, stopped in columns.items())
