"""Bytes, as people write and read them. Every unit is a power of 1024: `GB` means GiB, as in the MoTE paper."""

from __future__ import annotations

import re
from decimal import Decimal

from mote_quant.errors import RequestError

UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_EXPONENTS = {unit[0]: exponent for exponent, unit in enumerate(UNITS)} | {"": 0}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:([KMGT])(?:i?B)?|B)?\s*", re.IGNORECASE | re.ASCII)


def parse_bytes(text: str) -> int:
    """`3.4GB`, `512 MiB`, `2g`, `4096` -> bytes, rounded down. RequestError for anything else or less than one."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise RequestError(f"{text!r} is not a size; write a number and a unit, such as 3.4GB or 512MiB")
    number, prefix = match.groups()
    size = int(Decimal(number) * 1024 ** _EXPONENTS[(prefix or "").upper()])
    if size < 1:
        raise RequestError(f"{text!r} is not a size: it must be at least one byte")
    return size


def human_bytes(size: int) -> str:
    """Bytes for people: `812 B`, `44.1 KiB`, `3.40 GiB` (three or four digits, at most two after the point)."""
    value, unit = float(size), 0
    while abs(value) >= 1023.5 and unit < len(UNITS) - 1:
        value, unit = value / 1024, unit + 1
    if unit == 0:
        return f"{size} B"
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return f"{value:.{digits}f} {UNITS[unit]}"
