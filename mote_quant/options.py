"""How a run is carried out."""

from __future__ import annotations

from dataclasses import dataclass, field

from mote_quant.parallel import Sharding
from mote_quant.progress import Progress, Silent


@dataclass(frozen=True)
class Options:
    """How a run is carried out; nothing here changes its result.

    `sharding`: how the processes of a launcher (torchrun, accelerate) share a training; None as accelerate was told,
    else DDP. `log_to`: where figures of a training go beside `output/run/metrics.jsonl` (`tensorboard`, `wandb`).
    """

    progress: Progress = field(default_factory=Silent)
    keep_steps: bool = False
    sharding: Sharding | None = None
    log_to: tuple[str, ...] = ()
