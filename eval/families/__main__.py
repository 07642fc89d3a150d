"""`python -m eval.families`: try out every family and write docs/models.md; `--check` only compares."""

from __future__ import annotations

import argparse
import difflib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import transformers

from eval.families.path import Row
from eval.families.table import DOCUMENT, TABLES, document, line


def main() -> int:
    """0 when the page is written, or holds; 1 when it does not."""
    parser = argparse.ArgumentParser(prog="python -m eval.families", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if docs/models.md is not what is"
    )
    check = parser.parse_args().check
    transformers.logging.set_verbosity_error()
    made = document(_rows())
    if not check:
        DOCUMENT.write_text(made)
        return 0
    changes = list(
        difflib.unified_diff(DOCUMENT.read_text().splitlines(), made.splitlines(), "written", "found", "", "", 0)
    )
    print(*changes, sep="\n")
    return int(bool(changes))


def _rows() -> Iterator[Row]:
    for families in TABLES.values():
        for try_out in families.values():
            with tempfile.TemporaryDirectory() as folder:
                row = try_out(Path(folder))
            print(line(row), flush=True)
            yield row


if __name__ == "__main__":
    sys.exit(main())
