"""What one has to know about a two-digit number: the questions that looking and counting cannot answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd, isqrt

ELEMENT_NAMES = (
    "hydrogen helium lithium beryllium boron carbon nitrogen oxygen fluorine neon sodium magnesium aluminium silicon "
    "phosphorus sulfur chlorine argon potassium calcium scandium titanium vanadium chromium manganese iron cobalt "
    "nickel copper zinc gallium germanium arsenic selenium bromine krypton rubidium strontium yttrium zirconium "
    "niobium molybdenum technetium ruthenium rhodium palladium silver cadmium indium tin antimony tellurium iodine "
    "xenon caesium barium lanthanum cerium praseodymium neodymium promethium samarium europium gadolinium terbium "
    "dysprosium holmium erbium thulium ytterbium lutetium hafnium tantalum tungsten rhenium osmium iridium platinum "
    "gold mercury thallium lead bismuth polonium astatine radon francium radium actinium thorium protactinium uranium "
    "neptunium plutonium americium curium berkelium californium einsteinium"
)
ELEMENTS = tuple(ELEMENT_NAMES.split())
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


MODULUS, ROOT = 97, 5
"""The "modular" questions compute with remainders by this prime; powers of ROOT reach all of them but 0."""
DECIMALS = {
    "pi": "1415926535897932384626433832795028841971693993751058209749445923078164062862089986280348253421170679",
    "e": "7182818284590452353602874713526624977572470936999595749669676277240766303535475945713821785251664274",
    "root two": str(isqrt(2 * 10**200))[1:],
}
"""The first hundred decimals of three famous numbers."""


@dataclass(frozen=True)
class Fact:
    """A question about the number in a row or column (`{}` is its place) and its answer, None where there is none."""

    question: str
    answer: Callable[[int], str | int | None]


def element(number: int) -> str | None:
    """The chemical element with this atomic number."""
    return ELEMENTS[number - 1] if 1 <= number <= len(ELEMENTS) else None


def prime_factors(number: int) -> list[int]:
    """The different primes that divide the number, smallest first; none for 0 and 1."""
    divisors = [factor for factor in range(2, number + 1) if number % factor == 0]
    return [factor for factor in divisors if all(factor % smaller for smaller in divisors if smaller < factor)]


def primes(count: int) -> list[int]:
    """The first `count` primes."""
    found: list[int] = []
    candidate = 2
    while len(found) < count:
        if all(candidate % prime for prime in found):
            found.append(candidate)
        candidate += 1
    return found


def divisors(number: int) -> int | None:
    """How many numbers divide this one."""
    return sum(number % divisor == 0 for divisor in range(1, number + 1)) or None


def totient(number: int) -> int | None:
    """How many of 1..number share no factor with it."""
    return sum(gcd(number, other) == 1 for other in range(1, number + 1)) or None


def modular_inverse(number: int) -> int | None:
    """The number that, times this one, leaves 1."""
    return pow(number, -1, MODULUS) if number % MODULUS else None


def modular_logarithm(number: int) -> int | None:
    """The power of ROOT that leaves the same remainder as this number."""
    return next((power for power in range(MODULUS - 1) if (pow(ROOT, power, MODULUS) - number) % MODULUS == 0), None)


def modular_fibonacci(number: int) -> int:
    """The remainder of the Fibonacci number of this index."""
    one, two = 0, 1
    for _ in range(number):
        one, two = two, one + two
    return one % MODULUS


def collatz_steps(number: int) -> int | None:
    """Steps of the 3n + 1 walk from this number to 1."""
    steps = 0
    while number > 1:
        number = number // 2 if number % 2 == 0 else 3 * number + 1
        steps += 1
    return steps if number else None


FACTS: dict[str, Fact] = {
    "element": Fact("which element is {}?", element),
    "country": Fact("which country dials {}?", DIALLING_CODES.get),
    "hexadecimal": Fact("{} in hexadecimal?", lambda number: f"{number:x}"),
    "remainder 7": Fact("{} modulo 7?", lambda number: number % 7),
    "remainder 13": Fact("{} modulo 13?", lambda number: number % 13),
    "smallest factor": Fact("smallest factor of {}?", lambda number: min(prime_factors(number), default=None)),
    "largest factor": Fact("largest factor of {}?", lambda number: max(prime_factors(number), default=None)),
    "divisors": Fact("how many divisors has {}?", divisors),
    "prime": Fact("is {} prime?", lambda number: "yes" if prime_factors(number) == [number] else "no"),
    "totient": Fact("totient of {}?", totient),
    "square": Fact("modular square of {}?", lambda number: number**2 % MODULUS),
    "cube": Fact("modular cube of {}?", lambda number: number**3 % MODULUS),
    "inverse": Fact("modular inverse of {}?", modular_inverse),
    "logarithm": Fact("modular logarithm of {}?", modular_logarithm),
    "fibonacci": Fact("modular fibonacci of {}?", modular_fibonacci),
    "collatz": Fact("collatz steps of {}?", collatz_steps),
    "ones": Fact("binary ones of {}?", int.bit_count),
    "numbered prime": Fact("which prime is number {}?", lambda number: primes(number)[-1] if number else None),
    **{name: Fact(f"decimal of {name} at {{}}?", digits.__getitem__) for name, digits in DECIMALS.items()},
}
"""By kind; the number is the two digits of a row (left to right) or a column (top to bottom)."""


def answers(fact: Fact) -> tuple[str | None, ...]:
    """The answer for every number from 0 to 99."""
    found = (fact.answer(number) for number in range(100))
    return tuple(None if answer is None else str(answer) for answer in found)
