"""What every step of the pipeline is given, and the shape of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

from mote_quant.moe import MoteLayout
from mote_quant.progress import Progress as Progress
from mote_quant.progress import Silent as Silent
from mote_quant.recipe.schema import Bits

if TYPE_CHECKING:
    from mote_quant.data.source import Source


@dataclass
class Context:
    """What a step needs beside the model and its own settings.

    `layouts` and `formats` are what the plan decided: mixture layers to install, and the format of each module (or, for
    float casts, each parameter). `folder` is where a step may keep checkpoints; None when the run keeps nothing.
    `notes` is what the step wants in the report.
    """

    seed: int
    layouts: tuple[MoteLayout, ...]
    formats: dict[str, Bits]
    open_data: Callable[[str, int | None], Source]
    folder: Path | None = None
    progress: Progress = field(default_factory=Silent)
    notes: dict[str, Any] = field(default_factory=dict)


class Step(Protocol):
    """`run(model, config, context) -> model`: changes the model in place and returns it."""

    def __call__(self, model: nn.Module, config: Any, context: Context, /) -> nn.Module:
        """Do it."""
        ...
