"""HF `Trainer` with our data order, our checkpoints and a guard against losses that are not finite."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from mote_quant.data.schedule import Schedule
from mote_quant.errors import TrainingError
from mote_quant.hf import checkpoint as checkpoints
from mote_quant.hf import random_state
from mote_quant.hf.distillation import Distillation
from mote_quant.hf.quantizer import MoteQuantizer


class MoteTrainer(Trainer):  # type: ignore[misc]
    """Trains `model` on `schedule`; `tokens` counts the input tokens seen, resumed runs included.

    With a `distillation` the loss is what that makes of the model's own. `optimizer` makes one, given the names of the
    parameters that weight decay may be applied to.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        schedule: Schedule,
        collate: Callable[[Sequence[Any]], dict[str, Tensor]],
        optimizer: Callable[[Collection[str]], torch.optim.Optimizer],
        callbacks: Sequence[TrainerCallback] = (),
        distillation: Distillation | None = None,
    ) -> None:
        with _taken_for_dense(model):
            super().__init__(model, arguments, data_collator=collate, train_dataset=schedule, callbacks=list(callbacks))
        self.remove_callback(PrinterCallback)
        self.tokens = 0
        self.optimizer: Any
        self._make_optimizer = optimizer
        self._distillation = distillation
        if distillation is not None:
            distillation.to(self.args.device)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def create_optimizer(self, model: nn.Module | None = None) -> Any:
        """The one that was asked for."""
        if self.optimizer is None:
            self.optimizer = self._make_optimizer(self.get_decay_parameter_names(self.model))
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward; raises TrainingError at the first loss that is not finite."""
        loss: Tensor = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} after step {self.state.global_step}: lower learning_rate, add warmup, or "
                "check the data. The last checkpoint is kept; change the recipe and use a new output folder"
            )
        self.tokens += inputs["input_ids"].numel()
        return loss

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss, mixed with the distance from a teacher where there is one."""
        if self._distillation is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        task, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        loss = self._distillation.loss(task, outputs["logits"], inputs, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        optimizer = self.optimizer.state_dict()
        tensors = {f"model.{name}": p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        for index, state in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
        random_tensors, random_values = random_state.capture()
        tensors |= {f"random.{name}": tensor for name, tensor in random_tensors.items()}
        values = {
            "param_groups": optimizer["param_groups"],
            "scheduler": self.lr_scheduler.state_dict(),
            "random": random_values,
            "tokens": self.tokens,
            "data": self.train_dataset.state_dict(),
        }
        # Through JSON as Trainer itself writes it: resuming reads the same file.
        self.state.stateful_callbacks["TrainerControl"] = self.control.state()
        trainer_state = json.dumps(dataclasses.asdict(self.state), indent=2, sort_keys=True, default=str)
        folder = Path(self.args.output_dir)
        checkpoint = checkpoints.Checkpoint(tensors, values)
        checkpoints.write(folder, self.state.global_step, checkpoint, {TRAINER_STATE_NAME: trainer_state})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        saved = _part(checkpoints.read(Path(resume_from_checkpoint)).tensors, "model")
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad:
                    parameter.copy_(saved[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        read = checkpoints.read(Path(checkpoint))
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in _part(read.tensors, "optimizer").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": read.values["param_groups"]})
        self.lr_scheduler.load_state_dict(read.values["scheduler"])
        self.tokens = read.values["tokens"]
        self.train_dataset.load_state_dict(read.values["data"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            read = checkpoints.read(Path(checkpoint))
            random_state.restore(_part(read.tensors, "random"), read.values["random"])


@contextmanager
def _taken_for_dense(model: nn.Module) -> Iterator[None]:
    """Trainer refuses a model of packed weights; what is trained here (a router, a norm) is float all the same."""
    if not isinstance(getattr(model, "hf_quantizer", None), MoteQuantizer):
        yield
        return
    cast(Any, model).is_quantized = False
    try:
        yield
    finally:
        cast(Any, model).is_quantized = True


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
