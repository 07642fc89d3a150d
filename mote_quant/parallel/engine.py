"""What HF Trainer and accelerate have to know of a model that is sharded already."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mote_quant.parallel.devices import Spread
from mote_quant.parallel.sharding import average, clip


def adapt(trainer: Any, spread: Spread) -> None:
    """Have `trainer` leave a sharded model where it is, and count whole parameters and parts alike in its gradients."""
    if not spread.sharded:
        return
    accelerator = trainer.accelerator
    prepare = accelerator.prepare_model

    def prepare_model(model: nn.Module, device_placement: bool | None = None, evaluation_mode: bool = False) -> Any:
        # As for evaluation: nothing is wrapped around it.
        return prepare(model, device_placement=False, evaluation_mode=True)

    def clip_gradients(parameters: Any, max_norm: float, norm_type: float = 2.0) -> Tensor:
        average(spread.kept)
        return clip(list(parameters), max_norm)

    accelerator.prepare_model = prepare_model
    accelerator.clip_grad_norm_ = clip_gradients
    trainer._clip_grad_norm = lambda model: clip_gradients(model.parameters(), trainer.args.max_grad_norm)
