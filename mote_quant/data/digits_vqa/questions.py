"""Questions about a scene, one function a kind: looking, counting, computing, and knowing (see `facts`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from mote_quant.data.digits_vqa.facts import FACTS, Fact, answers
from mote_quant.data.digits_vqa.scenes import COLUMNS, ROWS, Cells

PLACES = ("top left", "top right", "bottom left", "bottom right")
LINES = {"top row": (0, 1), "bottom row": (2, 3), "left column": (0, 2), "right column": (1, 3)}
NOTHING = "nothing"

EMPTY_SHARE = 0.12
REPEAT_SHARE = 0.25
CANDIDATES = 6
"""Scenes drawn for every question; the one whose answer was seen least often is kept."""

Asked = tuple[str, str] | None
Kind = Callable[[Cells, Random], Asked]


@dataclass(frozen=True)
class Question:
    """A question about a scene, its kind and its answer."""

    kind: str
    cells: Cells
    text: str
    answer: str


def _digits(cells: Cells) -> list[int]:
    return [digit for digit in cells if digit is not None]


def _yes(truth: bool) -> str:
    return "yes" if truth else "no"


def _line(cells: Cells, rng: Random) -> tuple[str, list[int]]:
    name = rng.choice(list(LINES))
    return name, _digits(tuple(cells[place] for place in LINES[name]))


def _pair(cells: Cells, rng: Random) -> tuple[str, str, int, int] | None:
    first, second = rng.sample(range(len(PLACES)), 2)
    one, two = cells[first], cells[second]
    return None if one is None or two is None else (PLACES[first], PLACES[second], one, two)


def _cell(cells: Cells, rng: Random) -> Asked:
    place = rng.randrange(len(PLACES))
    digit = cells[place]
    return f"what is {PLACES[place]}?", NOTHING if digit is None else str(digit)


def _read(cells: Cells, rng: Random) -> Asked:
    name, digits = _line(cells, rng)
    return (f"read {name}?", "".join(map(str, digits))) if len(digits) == COLUMNS else None


def _where(cells: Cells, rng: Random) -> Asked:
    once = [digit for digit, times in Counter(_digits(cells)).items() if times == 1]
    if not once:
        return None
    digit = rng.choice(once)
    return f"where is {digit}?", PLACES[cells.index(digit)]


def _present(cells: Cells, rng: Random) -> Asked:
    digit = rng.choice(_digits(cells)) if rng.random() < 0.5 and _digits(cells) else rng.randrange(10)
    return f"is there a {digit}?", _yes(digit in cells)


def _count(cells: Cells, rng: Random) -> Asked:
    digit = rng.choice(_digits(cells)) if rng.random() < 0.8 and _digits(cells) else rng.randrange(10)
    return f"how many {digit}s?", str(cells.count(digit))


def _evens(cells: Cells, rng: Random) -> Asked:
    return "how many even?", str(sum(digit % 2 == 0 for digit in _digits(cells)))


def _extreme(word: str, pick: Callable[[list[int]], int]) -> Kind:
    def ask(cells: Cells, rng: Random) -> Asked:
        digits = _digits(cells)
        return (f"{word} digit?", str(pick(digits))) if digits else None

    return ask


def _difference(cells: Cells, rng: Random) -> Asked:
    pair = _pair(cells, rng)
    if pair is None:
        return None
    first, second, one, two = pair
    return f"difference of {first} and {second}?", str(abs(one - two))


def _line_sum(cells: Cells, rng: Random) -> Asked:
    name, digits = _line(cells, rng)
    return f"sum of {name}?", str(sum(digits))


def _total(cells: Cells, rng: Random) -> Asked:
    return "sum of all?", str(sum(_digits(cells)))


def _parity(cells: Cells, rng: Random) -> Asked:
    name, digits = _line(cells, rng)
    return f"is the sum of {name} even?", _yes(sum(digits) % 2 == 0)


def _fact(fact: Fact) -> Kind:
    known = answers(fact)

    def ask(cells: Cells, rng: Random) -> Asked:
        name, digits = _line(cells, rng)
        answer = known[10 * digits[0] + digits[1]] if len(digits) == COLUMNS else None
        return None if answer is None else (fact.question.format(name), answer)

    return ask


KINDS: dict[str, Kind] = {
    "cell": _cell,
    "read": _read,
    "where": _where,
    "present": _present,
    "count": _count,
    "evens": _evens,
    "largest": _extreme("largest", max),
    "smallest": _extreme("smallest", min),
    "line sum": _line_sum,
    "total": _total,
    "parity": _parity,
    **{name: _fact(fact) for name, fact in FACTS.items()},
}

WEIGHTS = {"cell": 4, "read": 6}
"""Reading comes more often: it is what every other question is built on."""
TURNS = tuple(kind for kind in KINDS for _ in range(WEIGHTS.get(kind, 1)))


def draw_cells(rng: Random) -> Cells:
    """A random scene; a quarter of them repeat a digit, so that counting has something to count."""
    cells: list[int | None] = [None if rng.random() < EMPTY_SHARE else int(10 * rng.random()) for _ in PLACES]
    if rng.random() < REPEAT_SHARE:
        source, target = rng.sample(range(ROWS * COLUMNS), 2)
        cells[target] = cells[source]
    return tuple(cells)


def questions(rng: Random) -> Iterator[Question]:
    """Endless questions, every kind in turn, the answers of a kind as even as its scenes allow."""
    seen: Counter[tuple[str, str]] = Counter()
    while True:
        for kind in TURNS:
            question = min(_candidates(kind, rng), key=lambda candidate: seen[candidate.kind, candidate.answer])
            seen[question.kind, question.answer] += 1
            yield question


def _candidates(kind: str, rng: Random) -> list[Question]:
    candidates: list[Question] = []
    while len(candidates) < CANDIDATES:
        cells = draw_cells(rng)
        asked = KINDS[kind](cells, rng)
        if asked is not None:
            candidates.append(Question(kind, cells, *asked))
    return candidates
