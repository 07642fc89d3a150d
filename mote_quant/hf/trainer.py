"""HF `Trainer` with our data order, our checkpoints and a guard against what is not finite."""

from __future__ import annotations

import dataclasses
import json
import math
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
from mote_quant.hf import training_state
from mote_quant.hf.distillation import Distillation, added_balance
from mote_quant.hf.guard import LossGuard
from mote_quant.hf.pulling import follow_loss
from mote_quant.hf.quantizer import MoteQuantizer
from mote_quant.moe import blocks
from mote_quant.ranks import gathered, mean, ranks


class MoteTrainer(Trainer):  # type: ignore[misc]
    """Trains `model` on `schedule`.

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
        guard: LossGuard | None = None,
    ) -> None:
        with _taken_for_dense(model):
            super().__init__(model, arguments, data_collator=collate, train_dataset=schedule, callbacks=list(callbacks))
        self.remove_callback(PrinterCallback)
        self._tokens = 0
        self.optimizer: Any
        self._make_optimizer = optimizer
        self._distillation = distillation
        self._guard = guard
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
        """One forward and backward; raises TrainingError at the first loss that is not finite, unless there is a guard.

        A step that the guard leaves out moves nothing; what is usual stands in for its loss.
        """
        if self._guard is not None and self._guard.skips(self.state.global_step):
            usual = (self._guard.usual or 0.0) / self.args.gradient_accumulation_steps
            return torch.tensor(usual, device=self.args.device)
        # Of all processes: a loss that one of them cannot go on with is that of all.
        loss: Tensor = mean(super().training_step(model, inputs, *args, **kwargs))
        if self._guard is not None:
            self._guard.add(loss.item())
        elif not torch.isfinite(loss):
            raise self._spoiled(f"the loss is {loss.item()}")
        self._tokens += inputs["input_ids"].numel()
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm before clipping, the same in all processes: the last thing known before the weights move."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if self._guard is None and not math.isfinite(norm):
            raise self._spoiled("the gradient is not finite")
        return norm

    def _spoiled(self, what: str) -> TrainingError:
        return TrainingError(
            f"{what} after step {self.state.global_step}: lower learning_rate, add warmup, or check the data. The last "
            "checkpoint is kept; change the recipe and use a new output folder"
        )

    def total_tokens(self) -> int:
        """The input tokens seen by all processes, resumed runs included; to be asked for by all of them."""
        return sum(gathered(self._tokens))

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The model's own loss, mixed with the distance from a teacher where there is one."""
        if self._distillation is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with self._distillation.watching(self.model) as states:
            task, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        # Trainer multiplies a share of a loss by the number of processes, for their gradients are averaged.
        world = 1 if num_items_in_batch is None else ranks().world
        balance = added_balance(self.model, outputs)
        loss = self._distillation.loss(task / world, outputs["logits"], inputs, num_items_in_batch, states, balance)
        if blocks(self.model):
            loss = follow_loss(self.model, loss)
        return (world * loss, outputs) if return_outputs else world * loss

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this moment."""
        self._save_checkpoint(self.model, None)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        values = {
            "scheduler": training_state.schedule_of(self.lr_scheduler),
            "tokens": self.total_tokens(),
            "data": self.train_dataset.state_dict(),
            "guard": None if self._guard is None else self._guard.state_dict(),
        }
        # Through JSON as Trainer itself writes it: resuming reads the same file.
        self.state.stateful_callbacks["TrainerControl"] = self.control.state()
        trainer_state = json.dumps(dataclasses.asdict(self.state), indent=2, sort_keys=True, default=str)
        checkpoint = training_state.collect(self.model, _inner(self.optimizer), values)
        folder = Path(self.args.output_dir)
        # The newest may have been written after a spike began: with a guard the one before it stays too.
        keep = 1 if self._guard is None else 2
        checkpoints.write(folder, self.state.global_step, checkpoint, {TRAINER_STATE_NAME: trainer_state}, keep)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        training_state.restore_model(checkpoints.read(Path(resume_from_checkpoint)), self.model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        saved = checkpoints.read(Path(checkpoint))
        training_state.restore_optimizer(saved, self.model, _inner(self.optimizer))
        training_state.restore_schedule(saved.values["scheduler"], self.lr_scheduler)
        # The total is of all processes; one of them counts on from there.
        self._tokens = saved.values["tokens"] if ranks().main else 0
        self.train_dataset.load_state_dict(saved.values["data"])
        if self._guard is not None:
            self._guard.load_state_dict(saved.values["guard"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            training_state.restore_random(checkpoints.read(Path(checkpoint)), self.args.seed + self.state.global_step)


def _inner(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer itself: accelerate puts one of its own around it."""
    inner: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
    return inner


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
