from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.errors import RequestError
from mote_quant.memory.units import human_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("3.4GB", int(3.4 * 2**30)),
        ("3.4 GiB", int(3.4 * 2**30)),
        ("512MiB", 512 * 2**20),
        ("2g", 2 * 2**30),
        ("1.5 kb", 1536),
        (" 4096 ", 4096),
        ("17B", 17),
        (".5T", 2**39),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "3,4GB", "1e3", "3.4 G B", "0", "0.1B", "3.4XB", "nan", "\u0661GB", "1.2.3M"]
)
def test_anything_else_is_refused_by_name(text: str) -> None:
    with pytest.raises(RequestError, match="is not a size") as raised:
        parse_bytes(text)
    assert repr(text) in str(raised.value)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (812, "812 B"),
        (1024, "1.00 KiB"),
        (45158, "44.1 KiB"),
        (1024 * 1024 - 1, "1.00 MiB"),
        (int(3.4 * 2**30), "3.40 GiB"),
        (750 * 2**20, "750 MiB"),
        (5000 * 2**40, "5000 TiB"),
    ],
)
def test_sizes_are_written_for_people(size: int, text: str) -> None:
    assert human_bytes(size) == text


@given(st.integers(1, 2**50))
def test_what_is_written_can_be_read_back(size: int) -> None:
    assert abs(parse_bytes(human_bytes(size)) - size) <= 0.006 * size


@given(st.text(max_size=12))
def test_no_text_breaks_the_reader(text: str) -> None:
    with suppress(RequestError):
        assert parse_bytes(text) >= 1
