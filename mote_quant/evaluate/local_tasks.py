"""The data of our own lm-eval tasks: questions made of text that is already on the machine.

The files in `eval/tasks/` name these functions; lm-eval calls them with the task's `dataset_kwargs`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from random import Random
from typing import Any

from mote_quant.data.local import read_documents, read_rows
from mote_quant.data.stdlib_text.corpus import documents
from mote_quant.errors import DataError

FILE_VARIABLE = "MOTE_QUANT_TEXT"
"""The environment variable that names the file of `text_continuation` and `tinystories_continuation`."""
CONTEXT_LINES, QUESTIONS_A_FILE = 12, 20
PASSAGE = 1000
"""Characters of a passage at most, unless one line alone has more."""
CONTINUATION = 160
WRONG = 3
_ALIKE = 12  # wrong answers are drawn from so many that are nearest in length: length alone must not give them away
_HELD_OUT = 0.05
_WITH_ROWS = (".jsonl", ".json", ".parquet")

Splits = dict[str, Any]


def next_lines(**_: Any) -> Splits:
    """Which of four lines of Python comes next: {context, choices, gold}, from the held-out standard library files.

    The three wrong ones come from other files, are indented alike, and are about as long.
    """
    files = [content.splitlines() for content in documents()["test"]]
    lines = [(file, number) for file, text in enumerate(files) for number in _askable(text)]
    by_indent: dict[int, list[tuple[int, str]]] = {}
    for file, number in lines:
        by_indent.setdefault(_indent(files[file][number]), []).append((file, files[file][number]))

    def ask(file: int, number: int) -> dict[str, Any] | None:
        true = files[file][number]
        others = [line for other, line in by_indent[_indent(true)] if other != file]
        context = "\n".join(files[file][number - CONTEXT_LINES : number])
        return _question(context, f"\n{true}", [f"\n{line}" for line in others], f"{file}:{number}")

    asked = [[ask(file, number) for number in _spread(_askable(text))] for file, text in enumerate(files)]
    return _test_split(question for question in _in_turn(asked) if question)


def passages(**_: Any) -> Splits:
    """The held-out standard library files in passages of whole lines: {text}."""
    return _test_split({"text": text} for text in _in_turn([_passages(content) for content in documents()["test"]]))


def continuations(file: str | None = None, share: float = _HELD_OUT, prefix: str = "", **_: Any) -> Splits:
    """Which of four passages continues a document: {context, choices, gold}. Asked of the last `share` of a file.

    `file` (else the environment variable MOTE_QUANT_TEXT) is text with <|endoftext|> between documents, or .jsonl or
    .parquet with a column `text`; `prefix` goes before every document. DataError without such a file.
    """
    texts = _documents(file or os.environ.get(FILE_VARIABLE))
    halves = [pair for text in texts[-max(1, round(len(texts) * share)) :] if (pair := _halves(text))]
    asked = [
        # What follows a paragraph is set beside what follows other paragraphs.
        _question(prefix + begun, true, [other for _, other in halves if other[0] == true[0]], str(index))
        for index, (begun, true) in enumerate(halves)
    ]
    if not any(asked):
        raise DataError(
            f"the last {share:.0%} of {len(texts)} documents give no question: at least four of some length"
        )
    return _test_split(question for question in asked if question)


def _documents(file: str | None) -> list[str]:
    if not file:
        raise DataError(f"no file of text to ask about: name one in the environment variable {FILE_VARIABLE}")
    path = Path(file).expanduser()
    if not path.is_file():
        raise DataError(f"{file}, the file of text to ask about ({FILE_VARIABLE}), does not exist")
    if path.suffix.lower() not in _WITH_ROWS:
        return read_documents(path)
    rows = read_rows(path)
    if "text" not in rows.column_names:
        raise DataError(f"{file} has no column text; it has {', '.join(rows.column_names)}")
    return list(rows["text"])


def _question(context: str, true: str, others: Sequence[str], seed: str) -> dict[str, Any] | None:
    """Four answers in an order that `seed` decides; None where there are too few wrong ones."""
    alike = sorted(set(others) - {true}, key=lambda other: (abs(len(other) - len(true)), other))[:_ALIKE]
    if len(alike) < WRONG:
        return None
    random = Random(seed)
    choices = [true, *random.sample(alike, WRONG)]
    random.shuffle(choices)
    return {"context": context, "choices": choices, "gold": choices.index(true)}


def _askable(lines: Sequence[str]) -> list[int]:
    """Lines of some substance that directly follow one."""
    return [
        number
        for number in range(CONTEXT_LINES, len(lines))
        if 12 <= len(lines[number].strip()) <= 80 and lines[number - 1].strip() and not lines[number - 1][-1].isspace()
    ]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _spread(numbers: Sequence[int]) -> Sequence[int]:
    """At most QUESTIONS_A_FILE of them, evenly."""
    return numbers[:: max(1, -(-len(numbers) // QUESTIONS_A_FILE))]


def _passages(content: str) -> list[str]:
    found = [""]
    for line in content.splitlines(keepends=True):
        if found[-1] and len(found[-1]) + len(line) > PASSAGE:
            found.append("")
        found[-1] += line
    return [passage for passage in found if passage.strip()]


def _halves(text: str) -> tuple[str, str] | None:
    """The beginning of a document up to the sentence nearest its middle, and how it goes on."""
    ends = [match.end() for match in re.finditer(r"[.!?][\"”']?(?=\s)", text)]
    if not ends:
        return None
    cut = min(ends, key=lambda end: abs(end - len(text) // 2))
    rest = text[cut:].rstrip()
    words = rest if len(rest) <= CONTINUATION else rest[:CONTINUATION].rsplit(maxsplit=1)[0]
    return (text[:cut], words) if len(words.strip()) >= CONTINUATION // 4 else None


def _in_turn(groups: Iterable[Sequence[Any]]) -> list[Any]:
    """One of each group, then the next of each: the first few are of all kinds."""
    missing = object()
    return [item for item in chain.from_iterable(zip_longest(*groups, fillvalue=missing)) if item is not missing]


def _test_split(rows: Iterable[dict[str, Any]]) -> Splits:
    from datasets import Dataset

    return {"test": Dataset.from_list(list(rows))}
