"""What one has to know about a two-digit number: the questions that looking and counting cannot answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

ELEMENTS = (
    "hydrogen helium lithium beryllium boron carbon nitrogen oxygen fluorine neon sodium magnesium aluminium silicon "
    "phosphorus sulfur chlorine argon potassium calcium scandium titanium vanadium chromium manganese iron cobalt "
    "nickel copper zinc gallium germanium arsenic selenium bromine krypton rubidium strontium yttrium zirconium "
    "niobium molybdenum technetium ruthenium rhodium palladium silver cadmium indium tin antimony tellurium iodine "
    "xenon caesium barium lanthanum cerium praseodymium neodymium promethium samarium europium gadolinium terbium "
    "dysprosium holmium erbium thulium ytterbium lutetium hafnium tantalum tungsten rhenium osmium iridium platinum "
    "gold mercury thallium lead bismuth polonium astatine radon francium radium actinium thorium protactinium uranium "
    "neptunium plutonium americium curium berkelium californium einsteinium"
).split()
"""Chemical elements by atomic number, from 1."""

DIALLING_CODES = {
    20: "Egypt", 27: "South-Africa", 30: "Greece", 31: "Netherlands", 32: "Belgium", 33: "France", 34: "Spain",
    36: "Hungary", 39: "Italy", 40: "Romania", 41: "Switzerland", 43: "Austria", 44: "Britain", 45: "Denmark",
    46: "Sweden", 47: "Norway", 48: "Poland", 49: "Germany", 51: "Peru", 52: "Mexico", 53: "Cuba", 54: "Argentina",
    55: "Brazil", 56: "Chile", 57: "Colombia", 58: "Venezuela", 60: "Malaysia", 61: "Australia", 62: "Indonesia",
    63: "Philippines", 64: "New-Zealand", 65: "Singapore", 66: "Thailand", 81: "Japan", 82: "Korea", 84: "Vietnam",
    86: "China", 90: "Turkey", 91: "India", 92: "Pakistan", 93: "Afghanistan", 94: "Sri-Lanka", 95: "Myanmar",
    98: "Iran",
}  # fmt: skip
"""Countries by international dialling code."""


@dataclass(frozen=True)
class Fact:
    """A question about the number in a row or column (`{}` is its place) and its answer, None where there is none."""

    question: str
    answer: Callable[[int], str | None]


def element(number: int) -> str | None:
    """The chemical element with this atomic number."""
    return ELEMENTS[number - 1] if 1 <= number <= len(ELEMENTS) else None


def smallest_factor(number: int) -> str | None:
    """The smallest prime that divides the number."""
    return str(next(factor for factor in range(2, number + 1) if number % factor == 0)) if number > 1 else None


def divisors(number: int) -> str | None:
    """How many numbers divide this one."""
    return str(sum(number % divisor == 0 for divisor in range(1, number + 1))) if number else None


FACTS: dict[str, Fact] = {
    "element": Fact("which element is {}?", element),
    "country": Fact("which country dials {}?", DIALLING_CODES.get),
    "remainder": Fact("{} modulo 7?", lambda number: str(number % 7)),
    "smallest factor": Fact("smallest factor of {}?", smallest_factor),
    "divisors": Fact("how many divisors has {}?", divisors),
    "prime": Fact("is {} prime?", lambda number: "yes" if smallest_factor(number) == str(number) else "no"),
}
"""By kind; the number is the two digits of a row (left to right) or a column (top to bottom)."""
