"""The formats a weight can be given, and how its codes are found: the values of `bits` in a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeGuard, get_args

from pydantic import PlainValidator

from mote_quant.recipe.closed import Closed
from mote_quant.recipe.integers import AutoBits as AutoBits
from mote_quant.recipe.integers import FloatName as FloatName
from mote_quant.recipe.integers import IntegerBits as IntegerBits
from mote_quant.recipe.integers import IntegerName as IntegerName
from mote_quant.recipe.mistakes import refuse_keys, refuse_option
from mote_quant.recipe.scalars import PositiveInt

CodebookName = Literal["nf4", "fp4"]


class FloatBits(Closed):
    """Weights kept in a floating-point type."""

    format: FloatName


class CodebookBits(Closed):
    """bitsandbytes' 4-bit floats: a table of 16 values times the largest weight of a block of consecutive weights.

    With `double_quant` the block scales are themselves stored in 8 bits.
    """

    format: CodebookName
    block_size: Literal[64, 128, 256, 512] = 64
    double_quant: bool = False
    backend: Literal["own", "bitsandbytes"] = "own"


class ScaledBits(Closed):
    """Codes no larger than 1 times a scale per tensor, output channel or group, found by quantization-aware training.

    `scales: absmean` is the mean absolute weight; `learned` ones start there and are trained along (LSQ, arXiv
    1902.08153).
    """

    format: Literal["ternary", "binary"]
    granularity: Literal["tensor", "channel", "group"] = "tensor"
    group_size: PositiveInt = 128
    activations: Literal["int8", "none"] = "int8"
    scale_dtype: Literal["float32", "float16"] = "float32"
    scales: Literal["absmean", "learned"] = "absmean"

    def idle(self) -> dict[str, str]:
        """`group_size` without groups."""
        return {} if self.granularity == "group" else {"group_size": "granularity: group"}


class TernaryBits(ScaledBits):
    """Weights in {-1, 0, +1} times a scale."""

    format: Literal["ternary"]
    packing: Literal["2bit", "base3"] = "2bit"


class BinaryBits(ScaledBits):
    """Weights in {-1, +1} times a scale, packed at 1 bit."""

    format: Literal["binary"]


QatBits = TernaryBits | BinaryBits | IntegerBits
"""What routed experts can be trained for; of integers those with `method: qat` (see `trains`)."""
PackedBits = IntegerBits | CodebookBits | TernaryBits | BinaryBits
PACKED = (IntegerBits, CodebookBits, TernaryBits, BinaryBits)
"""The specs whose weights are held as packed bytes; `auto` becomes one of them."""
AnyBits = FloatBits | IntegerBits | AutoBits | CodebookBits | TernaryBits | BinaryBits


def trains(spec: Any) -> TypeGuard[QatBits]:
    """Whether codes of this spec come out of quantization-aware training, not out of the quantize step."""
    return isinstance(spec, ScaledBits) or (isinstance(spec, IntegerBits) and spec.method == "qat")


def wording(spec: AnyBits) -> str:
    """A format as messages name it: `ternary`, `int4`, `int3 by qat`."""
    return f"{spec.format} by qat" if isinstance(spec, IntegerBits) and trains(spec) else spec.format


FORMATS: dict[str, type[AnyBits]] = {
    **dict.fromkeys(get_args(FloatName), FloatBits),
    **dict.fromkeys(get_args(IntegerName), IntegerBits),
    **dict.fromkeys(get_args(CodebookName), CodebookBits),
    "ternary": TernaryBits,
    "binary": BinaryBits,
    "auto": AutoBits,
}


def read_bits(value: Any) -> AnyBits:
    """The spec that `format` names; a bare name is short for a mapping with nothing but that format."""
    if isinstance(value, AnyBits):
        return value
    settings = value if isinstance(value, dict) else {"format": value}
    name = settings.get("format")
    if "format" not in settings:
        refuse_keys(settings, known={key for kind in FORMATS.values() for key in kind.model_fields}, missing="format")
    if not isinstance(name, str) or name not in FORMATS:
        refuse_option(("format",), name, FORMATS)
    return FORMATS[str(name)].model_validate(settings)


Bits = Annotated[AnyBits, PlainValidator(read_bits)]
