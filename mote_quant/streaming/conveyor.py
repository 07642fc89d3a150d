"""What happens to each stage of a model beside quantizing: up-cycled before, cast, written and mapped after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mote_quant.anatomy.structure import decoder_layers
from mote_quant.hf.parts import part_to_save
from mote_quant.hf.structure import Structure, rebuild
from mote_quant.planning import Plan
from mote_quant.recipe.schema import FloatBits, Upcycle
from mote_quant.steps.base import Progress
from mote_quant.steps.quantize.casts import Mains, cast_parameters
from mote_quant.steps.quantize.latents import pack_latents
from mote_quant.steps.quantize.walk import stage_of
from mote_quant.steps.upcycle.preservation import Receipt
from mote_quant.steps.upcycle.run import upcycle_layer
from mote_quant.streaming.following import Follower
from mote_quant.streaming.paging import release, return_free_memory
from mote_quant.streaming.shards import Record, Shards


@dataclass
class Conveyor:
    """The `Stages` of a streamed run. `structure` is what it changes about the model, `upcycle` its step, if any.

    `notes` has a row a quantized module. `dense` collects modules as they were, for who measures roles afterwards.
    `receipt` says what up-cycling alone did, where that can be told.
    """

    model: nn.Module
    plan: Plan
    structure: Structure
    mains: Mains
    upcycle: Upcycle | None
    shards: Shards
    progress: Progress
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    dense: dict[str, nn.Module] = field(default_factory=dict)
    receipt: Receipt | None = None

    def __post_init__(self) -> None:
        self._stage = stage_of(self.model)
        self._generator = torch.Generator().manual_seed(self.plan.recipe.seed)
        self._known: Record | None = None
        self._read: list[Tensor] = []
        self._last = len(decoder_layers(self.model)) + 1
        # A head in another type than the states it is given would have to be told from one that was quantized.
        comparable = self.upcycle is not None and self.mains.before == self.mains.after
        self._follower = Follower(self.model) if comparable else None

    def begin(self, stage: int) -> bool:
        """Up-cycle the layer, or take the whole stage from the file that an earlier run wrote."""
        self._known = self.shards.record(stage)
        self._read = list(self._held(stage).values())
        if self._known is not None:
            self._resume(stage, self._known)
            return False
        if stage == self._last and self._follower is not None:
            self.receipt = self._follower.receipt()
        for layout in self.plan.layouts:
            if self.upcycle is not None and self._stage(layout.path) == stage:
                upcycle_layer(self.model, layout, self.upcycle, self._generator, _pack)
        if 0 < stage < self._last and self._follower is not None:
            self._follower.follow(stage - 1)
        return True

    def end(self, stage: int) -> None:
        """Cast what is to be cast, write the stage, and hold it as a map of its file from now on."""
        if self._known is None:
            pack_latents(self.model, self._within(stage))  # those that the model came with
            cast_parameters(self.model, self._casts(stage), self.mains, self._within(stage))
            self.shards.adopt(self.model, stage, self._write(stage))
        # What was read, which by now the model may hold no more, and what was written.
        release([*self._read, *self._held(stage).values()])
        self._read.clear()
        return_free_memory()
        self.progress.advance(stage + 1)

    def _resume(self, stage: int, known: Record) -> None:
        part = self.structure.part(self._within(stage))
        if not part.layouts:
            self.dense |= {name: self.model.get_submodule(name) for name in known.notes}
        rebuild(self.model, part)
        self.shards.adopt(self.model, stage, known)
        self.notes |= known.notes
        state = self.shards.state(stage)
        self._generator.set_state(state["generator"])
        if self._follower is not None:
            self._follower.hidden = state.get("hidden")
        if "receipt" in state:
            self.receipt = Receipt(*state["receipt"].tolist())

    def _write(self, stage: int) -> Record:
        held = self._held(stage)
        within = self._within(stage)
        notes = {name: note for name, note in self.notes.items() if within(name)}
        return self.shards.write(stage, part_to_save(self.model, held), held, notes, self._state())

    def _held(self, stage: int) -> dict[str, Tensor]:
        """The part of the state dict that lies in a stage."""
        within = self._within(stage)
        return {name: tensor for name, tensor in self.model.state_dict().items() if within(name.rpartition(".")[0])}

    def _state(self) -> dict[str, Tensor]:
        state = {"generator": self._generator.get_state()}
        if self._follower is not None and self._follower.hidden is not None:
            state["hidden"] = self._follower.hidden
        if self.receipt is not None:
            state["receipt"] = torch.tensor([self.receipt.max_abs, self.receipt.relative], dtype=torch.float64)
        return state

    def _casts(self, stage: int) -> Mapping[str, FloatBits]:
        within = self._within(stage)
        casts = {name: spec for name, spec in self.plan.formats.items() if isinstance(spec, FloatBits)}
        return {name: spec for name, spec in casts.items() if within(name.rpartition(".")[0])}

    def _within(self, stage: int) -> Callable[[str], bool]:
        return lambda name: self._stage(name) == stage


def _pack(expert: nn.Module) -> None:
    pack_latents(expert)
    return_free_memory()
