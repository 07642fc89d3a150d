"""Which extra brings which library, and how to get at one without letting it change the process."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from typing import Any

from mote_quant.errors import MissingExtraError

_log = logging.getLogger(__name__)

EXTRAS = {"gptqmodel": "gptq", "llmcompressor": "llmcompressor", "bitsandbytes": "bnb"}
"""The extra of each backend; a backend is named as its library is."""
_HINTS = {"llmcompressor": "; it wants transformers 5.17, so give it an environment of its own (docs/backends.md)"}


def require(backend: str) -> None:
    """MissingExtraError unless the backend's library is installed; `own` always is. Costs nothing: no import."""
    if backend != "own" and find_spec(backend) is None:
        raise _missing(backend)


def load(backend: str, module: str) -> Any:
    """A module of the backend's library; MissingExtraError where it is not installed or does not import."""
    require(backend)
    try:
        with contained(backend):
            return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{backend} is installed but does not import: {error}; {_missing(backend)}") from error


@contextmanager
def contained(backend: str) -> Iterator[None]:
    """While open, what a library prints goes to our debug log; environment and logging are put back afterwards."""
    root, log = logging.getLogger(), _DebugLog(backend)
    environment, level, handlers = dict(os.environ), root.level, list(root.handlers)
    try:
        with warnings.catch_warnings(), redirect_stdout(log), redirect_stderr(log):
            # Deprecations between two libraries are nothing that our caller could act on.
            warnings.simplefilter("ignore")
            yield
    finally:
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        root.setLevel(level)
        root.handlers[:] = handlers


class _DebugLog(io.TextIOBase):
    """A stream into our debug log. A library may hold on to it for good, as a place to write its own log to."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self._backend = backend
        self._logging = False

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if self._logging:  # by a handler that writes to whatever stderr is at the moment: to us
            return sys.__stderr__.write(text) if sys.__stderr__ is not None else len(text)
        if text.strip():
            self._logging = True
            try:
                _log.debug("%s: %s", self._backend, text.strip())
            finally:
                self._logging = False
        return len(text)


def _missing(backend: str) -> MissingExtraError:
    extra, hint = EXTRAS[backend], _HINTS.get(backend, "")
    return MissingExtraError(f"backend: {backend} needs the extra {extra}: pip install 'mote-quant[{extra}]'{hint}")
