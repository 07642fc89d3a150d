"""The few instructions that the interpreter does not run, run here: each on all bytes, four to a register."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("triton")

from mote_quant.kernels.triton.digits import TAKE_BASE3, TAKE_TWO_BITS

INSTRUCTIONS = {
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "shr.u32": lambda a, b: a >> b,
    "shl.b32": lambda a, b: a << b & 0xFFFFFFFF,
    "mul.lo.u32": lambda a, b: a * b & 0xFFFFFFFF,
}


def run(assembly, packed):
    """(digits, what is left) as the registers $0 and $1."""
    registers = {"$2": packed}
    for line in assembly.value.replace("{", "").replace("}", "").splitlines():
        if not (line := line.strip().rstrip(";")) or line.startswith(".reg"):
            continue
        name, target, *sources = re.split(r"[ ,]+", line)
        values = (registers[source] if source in registers else int(source, 0) for source in sources)
        registers[target] = INSTRUCTIONS[name](*values)
    return registers["$0"], registers["$1"]


@pytest.mark.parametrize(("assembly", "base", "count"), [(TAKE_TWO_BITS, 4, 4), (TAKE_BASE3, 3, 5)])
def test_four_bytes_give_the_digits_of_each(assembly, base, count):
    for first in range(256):
        stored = bytes((first, 255 - first, first ^ 0x55, 255))
        packed, found = int.from_bytes(stored, "little"), []
        for _ in range(count):
            digits, packed = run(assembly, packed)
            found.append(digits.to_bytes(4, "little"))
        for place, byte in enumerate(stored):
            assert [digits[place] for digits in found] == expected(byte, base, count)


def expected(byte, base, count):
    """Two bits from the lowest on; in base 3 the fraction in 256ths, its first digit first."""
    if base == 4:
        return [byte >> 2 * place & 3 for place in range(count)]
    return [byte * 3 ** (place + 1) // 256 % 3 for place in range(count)]
