"""Whose AdamW moves the weights, by the names that HF Trainer gives them.

What each remembers of a parameter is told in plain tensors, as a checkpoint holds them; tables that are the same for
all parameters are left out.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mote_quant.errors import MissingExtraError, RequestError
from mote_quant.steps.quantize.backends.extras import contained
from mote_quant.steps.train.compiling import require_compiler

State = dict[str, Any]
BETAS, EPSILON = (0.9, 0.999), 1e-8
_EXTRAS = {"adamw_bnb_8bit": ("bitsandbytes", "bnb"), "adamw_torch_8bit": ("torchao", "torchao")}


@dataclass(frozen=True)
class Library:
    """`make` AdamW over a list of tensors; `packed`: its state of one of them as plain tensors; `unpacked`: back."""

    make: Callable[[list[Tensor]], torch.optim.Optimizer]
    packed: Callable[[State], State]
    unpacked: Callable[[State], State]


def require_library(optimizer: str) -> None:
    """MissingExtraError where an `optimizer` of a recipe needs what is not installed. Costs no import."""
    if optimizer not in _EXTRAS:
        return
    module, _ = _EXTRAS[optimizer]
    if find_spec(module) is None:
        raise _missing(optimizer)
    # torchao compiles its step.
    if optimizer == "adamw_torch_8bit" and not torch.accelerator.is_available():
        require_compiler("optimizer: adamw_torch_8bit")


def works_on_shards(optimizer: str) -> bool:
    """Whether an `optimizer` of a recipe can move weights that FSDP2 has dealt out."""
    return optimizer == "adamw_torch"


def require_shards(optimizer: str) -> None:
    """RequestError for an `optimizer` of a recipe that is to work on shards and cannot."""
    if not works_on_shards(optimizer):
        raise RequestError(
            f"optimizer: {optimizer} keeps its states in blocks that cut across the rows that processes share; "
            "use adamw_torch with fsdp2, whose states are shared out too, or train with ddp"
        )


def library_of(optimizer: str) -> Library:
    """What an `optimizer` of a recipe names. Raises MissingExtraError."""
    require_library(optimizer)
    return {"adamw_torch": _torch, "adamw_bnb_8bit": _bitsandbytes, "adamw_torch_8bit": _torchao}[optimizer]()


def _torch() -> Library:
    return Library(lambda tensors: torch.optim.AdamW(tensors, betas=BETAS, eps=EPSILON, fused=True), dict, dict)


def _bitsandbytes() -> Library:
    make = _imported("adamw_bnb_8bit", "bitsandbytes.optim").AdamW8bit
    functional = _imported("adamw_bnb_8bit", "bitsandbytes.functional")

    @cache
    def tables(device: torch.device) -> dict[str, Tensor]:
        maps = {"qmap1": functional.create_dynamic_map(signed=True), "qmap2": functional.create_dynamic_map(False)}
        return {name: table.to(device) for name, table in maps.items()}

    def packed(state: State) -> State:
        return {key: value for key, value in state.items() if not key.startswith("qmap")}

    def unpacked(state: State) -> State:
        counted = state | ({"step": int(state["step"])} if state else {})
        return counted | (tables(state["state1"].device) if "absmax1" in state else {})

    return Library(lambda tensors: make(tensors, betas=BETAS, eps=EPSILON), packed, unpacked)


def _torchao() -> Library:
    make = _imported("adamw_torch_8bit", "torchao.optim").AdamW8bit
    kind = _imported("adamw_torch_8bit", "torchao.optim.subclass_8bit").OptimState8bit
    moments = {"exp_avg": True, "exp_avg_sq": False}

    @cache
    def table(signed: bool, device: torch.device) -> Tensor:
        whole: Tensor = kind.zeros((256,), signed, device=device).qmap
        return whole

    def packed(state: State) -> State:
        eight = {key: value for key, value in state.items() if isinstance(value, kind)}
        rest = {key: value for key, value in state.items() if key not in eight}
        codes = {f"{key}_codes": value.codes for key, value in eight.items()}
        return rest | codes | {f"{key}_scale": value.scale for key, value in eight.items()}

    def unpacked(state: State) -> State:
        found = {key: value for key, value in state.items() if not key.endswith(("_codes", "_scale"))}
        for key, signed in moments.items():
            codes = state.get(f"{key}_codes")
            if codes is not None:
                shared = table(signed, codes.device)
                found[key] = kind(codes, state[f"{key}_scale"], shared, signed, dtype=torch.float32)
        return found

    return Library(lambda tensors: make(tensors, betas=BETAS, eps=EPSILON), packed, unpacked)


def _imported(optimizer: str, module: str) -> Any:
    library, _ = _EXTRAS[optimizer]
    try:
        with contained(library):
            return importlib.import_module(module)
    except ImportError as error:
        text = f"{library} is installed but does not import: {error}; {_missing(optimizer)}"
        raise MissingExtraError(text) from error


def _missing(optimizer: str) -> MissingExtraError:
    _, extra = _EXTRAS[optimizer]
    return MissingExtraError(f"optimizer: {optimizer} needs the extra {extra}: pip install 'mote-quant[{extra}]'")
