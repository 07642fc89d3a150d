"""What every step of the pipeline is given, and the shape of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from mote_quant.moe import MoteLayout
from mote_quant.parallel import Sharding
from mote_quant.progress import Progress as Progress
from mote_quant.progress import Silent as Silent
from mote_quant.recipe.schema import Bits

if TYPE_CHECKING:
    from mote_quant.data.source import Source


def _nowhere(event: str, **values: Any) -> None:
    """A run without a folder has no journal."""


@dataclass
class Context:
    """What a step needs beside the model and its own settings.

    `layouts` and `formats` are what the plan decided: mixture layers to install, and the format of each module (or, for
    float casts, each parameter). `folder` is where a step may keep checkpoints; None when the run keeps nothing.
    `sharding` is how several processes share a training; `packs_next` says that the next step packs latent weights.
    `log_to` names where the figures of a training go beside the run's folder `logs`.
    `record` puts an event into the run's journal; `notes` is what the step wants in the report.
    """

    seed: int
    layouts: tuple[MoteLayout, ...]
    formats: dict[str, Bits]
    open_data: Callable[..., Source]
    folder: Path | None = None
    progress: Progress = field(default_factory=Silent)
    sharding: Sharding = "ddp"
    packs_next: bool = False
    logs: Path | None = None
    log_to: tuple[str, ...] = ()
    record: Callable[..., None] = _nowhere
    notes: dict[str, Any] = field(default_factory=dict)


class Step(Protocol):
    """`run(model, config, context) -> model`: changes the model in place and returns it."""

    def __call__(self, model: nn.Module, config: Any, context: Context, /) -> nn.Module:
        """Do it."""
        ...
