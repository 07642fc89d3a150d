"""Where figures are written as training goes: a file of JSON lines, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from mote_quant.errors import MissingExtraError, MoteError, RequestError
from mote_quant.ranks import launched
from mote_quant.recipe.near import did_you_mean
from mote_quant.watching.entries import Entry, flat, level
from mote_quant.watching.weights_and_biases import Wandb, has_key, no_key

_log = logging.getLogger(__name__)
FILE = "metrics.jsonl"
T = TypeVar("T")


class Sink(Protocol):
    """Takes figures."""

    def write(self, entry: Entry) -> None:
        """One more entry."""

    def close(self) -> None:
        """No more will come."""


class JsonLines:
    """`folder/metrics.jsonl`, a line an entry. Lines of the same `part` from before are replaced by `history`."""

    def __init__(self, folder: Path, part: str, history: Sequence[Entry]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._part = folder / FILE, part
        lines = self._path.read_text().splitlines() if self._path.exists() else []
        aside = self._path.with_suffix(".part")
        aside.write_text("".join(f"{line}\n" for line in lines if not self._own(line)))
        os.replace(aside, self._path)
        for entry in history:
            self.write(entry)

    def write(self, entry: Entry) -> None:
        """A line."""
        with self._path.open("a") as file:
            file.write(json.dumps({"part": self._part, **level(entry)}) + "\n")

    def close(self) -> None:
        """Every line is written already."""

    def _own(self, line: str) -> bool:
        try:
            return bool(json.loads(line)["part"] == self._part)
        except (ValueError, KeyError, TypeError):
            # Cut off when the process died.
            return True


class TensorBoard:
    """Event files in `folder/tensorboard/<part>`; what is there of steps after the last of `history` is purged."""

    def __init__(self, folder: Path, part: str, history: Sequence[Entry]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        first = int(history[-1]["step"]) + 1 if history else 0
        self._writer = cast(Any, SummaryWriter)(str(folder / "tensorboard" / part), purge_step=first)

    def write(self, entry: Entry) -> None:
        """A scalar for every number."""
        for name, value in flat(level(entry)):
            self._writer.add_scalar(name, value, int(entry["step"]))
        self._writer.flush()

    def close(self) -> None:
        """Close the files."""
        self._writer.close()


class Sturdy:
    """A sink whose failures are warned of, once, and then it is closed: figures are not worth a training."""

    def __init__(self, name: str, open_it: Callable[[], Sink]) -> None:
        self._name = name
        self._sink: Sink | None = None
        self._sink = self._tried(open_it)

    def write(self, entry: Entry) -> None:
        """One more entry, as long as the sink takes any."""
        if (sink := self._sink) is not None:
            self._tried(lambda: sink.write(entry))

    def close(self) -> None:
        """No more will come."""
        if (sink := self._sink) is not None:
            self._tried(sink.close)
        self._sink = None

    def _tried(self, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except MoteError:
            raise
        # What a sink raises is its own affair, and most of them are foreign code.
        except Exception as error:
            _log.warning("no more figures go to %s: %s: %s", self._name, type(error).__name__, error)
            failed, self._sink = self._sink, None
            with suppress(Exception):
                if failed is not None:
                    failed.close()
            return None


_SINKS: dict[str, tuple[Callable[[Path, str, Sequence[Entry]], Sink], str]] = {
    "tensorboard": (TensorBoard, "tensorboard"),
    "wandb": (Wandb, "wandb"),
}


def check_sinks(names: Sequence[str], folder: Path | None) -> None:
    """RequestError for a name nobody knows, without a folder or without a key to Weights & Biases; MissingExtraError
    for a package that is not there."""
    if isinstance(names, str):
        raise RequestError(f"log_to is a list of names, not text: say [{names!r}]")
    for name in names:
        if name not in _SINKS:
            meant = did_you_mean(name, _SINKS) or f"; choose of {', '.join(_SINKS)}"
            raise RequestError(f"figures cannot be logged to {name}{meant}")
        package = _SINKS[name][1]
        if find_spec(package) is None:
            raise MissingExtraError(f"logging to {name} needs a package that is not there: pip install {package}")
    if names and folder is None:
        raise RequestError(f"logging to {', '.join(names)} needs a folder to write to: name an output")
    # Of several processes one logs.
    if "wandb" in names and launched().main and not has_key():
        raise no_key("No API key configured")


def open_sinks(names: Sequence[str], folder: Path | None, part: str, history: Sequence[Entry]) -> list[Sink]:
    """The file, where there is a folder, and `names`. Errors as of `check_sinks`."""
    check_sinks(names, folder)
    if folder is None:
        return []
    kinds = {FILE: JsonLines} | {name: _SINKS[name][0] for name in names}
    return [Sturdy(name, partial(kind, folder, part, history)) for name, kind in kinds.items()]
