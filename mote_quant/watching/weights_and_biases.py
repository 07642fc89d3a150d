"""Figures go to Weights & Biases: as a run there, or into a folder for `wandb sync`."""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from mote_quant.errors import RequestError
from mote_quant.watching.entries import Entry, flat, level


class Wandb:
    """A run of Weights & Biases, the same one when a training goes on; its project, mode and key come from WANDB_*."""

    def __init__(self, folder: Path, part: str, history: Sequence[Entry]) -> None:
        import wandb

        place = f"{folder.resolve()}/{part}"
        try:
            self._run: Any = wandb.init(
                project=os.environ.get("WANDB_PROJECT", "mote-quant"),
                name=os.environ.get("WANDB_NAME", f"{folder.resolve().parent.name} {part}"),
                id=hashlib.sha256(place.encode()).hexdigest()[:12],
                dir=str(folder),
                resume="allow",
                reinit="create_new",
                settings=wandb.Settings(silent=True),
            )
        except wandb.errors.UsageError as error:
            raise no_key(error) from error

    def write(self, entry: Entry) -> None:
        """One call with every number."""
        self._run.log(dict(flat(level(entry))), step=int(entry["step"]))

    def close(self) -> None:
        """Upload what is left, or leave it for `wandb sync`."""
        self._run.finish()


def has_key() -> bool:
    """Whether Weights & Biases can be written to, or need not be: asks no server, and nobody at a terminal."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_MODE", "online") not in ("online", "shared"):
        return True
    import wandb

    # Older ones cannot be asked; they say so when the run is opened.
    asked = "prompt" in inspect.signature(wandb.login).parameters and wandb.setup().settings.mode == "online"
    return not asked or bool(cast(Any, wandb).login(prompt=False, verify=False))


def no_key(reason: object) -> RequestError:
    """The error for who may not write there."""
    return RequestError(
        f"logging to wandb: {reason}. Set WANDB_API_KEY, say `wandb login`, or have it written to the output folder "
        "only, with WANDB_MODE=offline"
    )
