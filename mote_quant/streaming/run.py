"""A pipeline of up-cycling and quantizing, carried out stage by stage on a checkpoint that need not fit in memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mote_quant.anatomy.feedforward import gate_by_numbers, scan, verify
from mote_quant.anatomy.roles import roles
from mote_quant.anatomy.structure import decoder_layers
from mote_quant.data.opener import Opener
from mote_quant.hf.attach import attach
from mote_quant.hf.card import write_card
from mote_quant.hf.loading import finite
from mote_quant.hf.parts import save_config
from mote_quant.hf.saving import as_save_error, write_whole
from mote_quant.hf.structure import structure_of
from mote_quant.planning import Plan
from mote_quant.progress import NOTICE
from mote_quant.recipe.schema import CodebookBits, IntegerBits, Quantize, Upcycle, trains
from mote_quant.steps.base import Context, Progress, Silent
from mote_quant.steps.quantize.calibrate import Calibrated, calibrate
from mote_quant.steps.quantize.casts import Mains, main_dtype
from mote_quant.steps.quantize.engine import Engine, Spec
from mote_quant.steps.quantize.measure import Reference, moved
from mote_quant.steps.upcycle.preservation import Receipt
from mote_quant.streaming.conveyor import Conveyor
from mote_quant.streaming.paging import layer_by_layer, release_module, releasing
from mote_quant.streaming.shards import Shards

_log = logging.getLogger(__name__)


@dataclass
class Stream:
    """One streamed run on `model`, whose weights are mapped files; `finished` is the skeleton of what it becomes.

    Finished stages lie in `folder`, which a resumed run goes on from.
    """

    model: nn.Module
    plan: Plan
    finished: nn.Module
    folder: Path
    opener: Opener
    progress: Progress

    @torch.no_grad()
    def run(self) -> list[dict[str, Any]]:
        """Carry out the plan; the notes of its steps, for the report. Raises MoteError subclasses."""
        started = time.monotonic()
        with layer_by_layer(self.model):
            self._check()
            context = Context(self.plan.recipe.seed, self.plan.layouts, self.plan.formats, self.opener)
            data = calibrate(self.model, self._quantize, context)
            receipt = self._stages(data, context.notes)
        attach(self.model, finished=True)
        context.notes["seconds"] = round(time.monotonic() - started, 3)
        kept = {} if receipt is None else {"preservation": receipt.to_dict()}
        notes = {"upcycle": kept, "quantize": context.notes}
        return [{"step": step.name, "streamed": True, **notes[step.name]} for step in self.plan.recipe.pipeline]

    def save(self, processor: Any = None) -> list[str]:
        """Put the finished model at the top of the run's output; the names of its files. Raises SaveError."""
        output = self.folder.parent.parent
        saves = [partial(Shards(self.folder).place, self._count), partial(save_config, self.model)]
        saves += [partial(write_card, self.model, place=output)]
        saves += [] if processor is None else [processor.save_pretrained]
        with as_save_error(output):
            return write_whole(output, *saves)

    def _check(self) -> None:
        places = {layout.path for layout in self.plan.layouts}
        for block in scan(self.model):
            if block.place in places:
                verify(self.model, gate_by_numbers(self.model, block))
                release_module(self.model.get_submodule(block.path))

    def _stages(self, data: Calibrated, notes: dict[str, Any]) -> Receipt | None:
        conveyor = self._conveyor()
        # Up-cycled and quantized together, there is no model between the two to compare with.
        comparable = self._quantize.measure != "none" and data.held_out and not self.plan.layouts
        reference = Reference(self.model, data.held_out) if comparable else None
        done = conveyor.shards.finished()
        if done:
            _log.log(NOTICE, "going on after stage %d of %d", done, self._count)
        self.progress.start("streaming", self._count)
        engine = Engine(self.model, data, self._quantize, Silent(), conveyor, conveyor.notes, conveyor.dense)
        engine.quantize(self._specs())
        role_of = roles(self.finished)
        named_roles = {name: role_of(name) for name in engine.notes}
        notes["modules"] = {name: {"role": named_roles[name]} | note for name, note in engine.notes.items()}
        if reference is not None:
            notes["outputs"] = moved(self.model, reference, engine.dense, named_roles)
        return conveyor.receipt

    def _conveyor(self) -> Conveyor:
        # The plan has the layers that are new, and knows what their experts are trained for; experts of the model's own
        # are apart already.
        structure = replace(structure_of(self.finished, latent=False), layouts=self.plan.layouts, unfused=())
        mains = Mains(main_dtype(self.model), main_dtype(self.finished))
        shards = Shards(self.folder)
        return Conveyor(self.model, self.plan, structure, mains, self._upcycle, shards, self.progress)

    def _specs(self) -> dict[str, Spec]:
        formats = self.plan.formats.items()
        packed = {name: spec for name, spec in formats if isinstance(spec, IntegerBits | CodebookBits)}
        return {name: spec for name, spec in packed.items() if not trains(spec)}

    @property
    def _quantize(self) -> Quantize:
        return next(step.config for step in self.plan.recipe.pipeline if isinstance(step.config, Quantize))

    @property
    def _upcycle(self) -> Upcycle | None:
        return next((step.config for step in self.plan.recipe.pipeline if isinstance(step.config, Upcycle)), None)

    @property
    def _count(self) -> int:
        return len(decoder_layers(self.model)) + 2


def read_once(model: nn.Module, progress: Progress) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a mapped model, checked to be finite and let go one after the other."""
    state = model.state_dict()
    progress.start("reading weights", len(state))
    for done, (name, tensor) in enumerate(finite(releasing(state.items())), start=1):
        yield name, tensor
        progress.advance(done)
