"""What one invocation carries along, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import typer

from mote_quant.errors import MoteError, RecipeError, RequestError
from mote_quant.ranks import Ranks, launched

INTERRUPTED = 130
UNEXPECTED = 3


@dataclass
class Session:
    """Global options; `output` is set once a command has begun a run that the same command can go on with."""

    debug: bool = False
    verbose: bool = False
    output: Path | None = None


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` (whose first parameter is the typer context) the exit codes of the program."""

    @wraps(command)
    def run(context: typer.Context, **values: Any) -> None:
        session: Session = context.obj
        try:
            command(context=context, **values)
        except (BrokenPipeError, typer.Exit):
            raise
        except KeyboardInterrupt as error:
            raise _fail(["interrupted"], INTERRUPTED, session.output) from error
        except MoteError as error:
            resumable = session.output if error.resumable else None
            raise _fail([f"error: {line}" for line in _lines(error)], error.exit_code, resumable) from error
        except Exception as error:
            if session.debug:
                traceback.print_exc()
            raise _fail([_unexpected(error, session.debug)], UNEXPECTED, session.output) from error

    return run


def _fail(lines: list[str], code: int, output: Path | None) -> typer.Exit:
    here = _here()
    if here.several:
        lines = [f"[process {here.rank}] {line}" for line in lines]
    shown = output if here.main else None
    hint = [f"Run the same command again to resume; what is done so far lies in {output}."] if shown else []
    for line in [*lines, *hint]:
        typer.echo(line, err=True)
    return typer.Exit(code)


def _here() -> Ranks:
    """Alone, where the environment makes no sense: that is then the error to be told."""
    try:
        return launched()
    except RequestError:
        return Ranks()


def _lines(error: MoteError) -> list[str]:
    return error.problems if isinstance(error, RecipeError) else error.message.splitlines()


def _unexpected(error: Exception, debug: bool) -> str:
    first = next(iter(str(error).splitlines()), "")
    ask = "" if debug else f" Run `mote-quant --debug {' '.join(sys.argv[1:2])} ...` to see where, and report it."
    return f"error: unexpected {type(error).__name__}: {first} (a bug in mote-quant).{ask}"
