"""bitsandbytes' quantized weights, taken over to the byte: from live modules, from files, or fresh from the library.

`read` takes the tensors of one module as bitsandbytes names them: `weight`, `weight.absmax`,
`weight.quant_state.bitsandbytes__nf4`, ... for 4 bits, `weight` and `SCB` for int8.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from mote_quant.errors import ArtifactError, FormatError, ModelError
from mote_quant.formats import Codes, format_for
from mote_quant.formats.base import check_tensors
from mote_quant.formats.codebook import SCALE_OFFSET, SCALE_SCALE, SCALE_TABLE
from mote_quant.hf.stored import read as read_schema
from mote_quant.hf.structure import replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.recipe.scalars import PositiveInt
from mote_quant.recipe.schema import CodebookBits, IntegerBits

_log = logging.getLogger(__name__)
_STATE = "weight.quant_state.bitsandbytes__"
_STATES = (f"{_STATE}nf4", f"{_STATE}fp4")
_INT8 = IntegerBits(format="int8", scale_dtype="float32", backend="bitsandbytes")

BnbBits = CodebookBits | IntegerBits


class _State(BaseModel):
    """What bitsandbytes writes beside the tensors of a 4-bit weight; what is not read here follows from the rest."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    quant_type: Literal["nf4", "fp4"]
    blocksize: Literal[64, 128, 256, 512]
    shape: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
    nested_blocksize: Literal[256] | None = None
    nested_offset: float = 0.0


def module_names(keys: Iterable[str]) -> list[str]:
    """The modules that bitsandbytes quantized, from the names of all tensors of a checkpoint."""
    ends = tuple(f".{key}" for key in (*_STATES, "SCB"))
    return sorted({key.removesuffix(end) for key in keys for end in ends if key.endswith(end)})


def spec_of(tensors: Mapping[str, Tensor], name: str = "weight") -> BnbBits:
    """The spec of one module's tensors. ArtifactError for what cannot be read; `name` is the module's, for errors."""
    if "SCB" in tensors:
        return _INT8
    state = _state(tensors, name)
    double = state.nested_blocksize is not None
    return CodebookBits(
        format=state.quant_type, block_size=state.blocksize, double_quant=double, backend="bitsandbytes"
    )


def read(tensors: Mapping[str, Tensor], name: str = "weight") -> tuple[BnbBits, Codes]:
    """The spec and codes of one module's tensors, exactly theirs. Raises ArtifactError."""
    spec = spec_of(tensors, name)
    try:
        codes = _read_int8(tensors, name) if isinstance(spec, IntegerBits) else _read_codebook(tensors, name)
        layout = format_for(spec).layout((codes.codes.shape[0], codes.codes.shape[1]))
        scales = {key: part for key, part in layout.items() if key != "weight"}
        check_tensors({"weight_scale": codes.scale, **codes.companions}, scales)
    except (KeyError, RuntimeError, FormatError) as error:
        text = f"{name}: the tensors that bitsandbytes stored do not fit together ({error}); copy the model again"
        raise ArtifactError(text) from error
    return spec, codes


def absorb(model: nn.Module) -> int:
    """Put a PackedLinear of the same codes in the place of every quantized layer of bitsandbytes; how many there were.

    The model is then no longer transformers' quantized one: it may be cast, changed and attached to our quantizer.
    """
    library = cast(Any, sys.modules.get("bitsandbytes"))
    if library is None:
        return 0
    kinds = (library.nn.Linear4bit, library.nn.Linear8bitLt)
    held = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    for name, module in held.items():
        replace_module(model, name, _take_over(module, name, dtype))
    if held:
        _detach(model)
        _log.info("took over %d layers quantized by bitsandbytes", len(held))
    return len(held)


def _take_over(module: nn.Module, name: str, dtype: torch.dtype) -> PackedLinear:
    tensors = module.state_dict()
    if not module_names(f".{key}" for key in tensors):
        raise ModelError(
            f"{name} holds weights that bitsandbytes has not quantized yet; load the model with from_pretrained, "
            "and without llm_int8_has_fp16_weight"
        )
    spec, codes = read(tensors, name)
    return PackedLinear.pack(spec, codes, tensors.get("bias"), dtype).train(module.training)


def _detach(model: nn.Module) -> None:
    """Undo what transformers' quantizer noted on the model."""
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None:
        quantizer.remove_quantization_config(model)
    for flag in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
        model.__dict__.pop(flag, None)


def _state(tensors: Mapping[str, Tensor], name: str) -> _State:
    key = next((key for key in _STATES if key in tensors), None)
    where = f"{name}: the state that bitsandbytes stores"
    if key is None:
        raise ArtifactError(f"{where} is missing (expected {' or '.join(_STATES)}); copy the model again")
    try:
        values = json.loads(bytes(tensors[key].tolist()))
    except (ValueError, TypeError) as error:
        raise ArtifactError(f"{where} cannot be read: {error}; copy the model again") from error
    return read_schema(_State, values, where)


def _read_codebook(tensors: Mapping[str, Tensor], name: str) -> Codes:
    state = _state(tensors, name)
    rows, columns = state.shape
    # Stored in another type when a trainer shards only such (bnb_4bit_quant_storage).
    packed = tensors["weight"].contiguous().view(torch.uint8).flatten()
    codes = torch.stack([packed >> 4, packed & 15], -1).flatten()[: rows * columns].view(rows, columns)
    scale = tensors["weight.absmax"]
    if state.nested_blocksize is None:
        return Codes(codes, _in_order(scale))
    companions = {
        SCALE_TABLE: tensors["weight.nested_quant_map"],
        SCALE_SCALE: tensors["weight.nested_absmax"],
        SCALE_OFFSET: torch.tensor([state.nested_offset], device=scale.device),
    }
    return Codes(codes, scale, companions=companions)


def _in_order(scale: Tensor) -> Tensor:
    """Block scales as float32 [blocks]. A forward on a CPU with AVX512-BF16 turns them: [blocks per row, rows]."""
    return (scale.t() if scale.dim() == 2 else scale).flatten().float()


def _read_int8(tensors: Mapping[str, Tensor], name: str) -> Codes:
    form = tensors.get("weight_format")
    if form is not None and int(form) != 0:
        raise ArtifactError(f"{name}: only row by row int8 can be read, not bitsandbytes' weight_format {int(form)}")
    return Codes(tensors["weight"], tensors["SCB"].float().view(-1, 1) / 127)
