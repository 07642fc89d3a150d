"""The recipe: what weighs what (`bits`) and what happens, in order (`pipeline`).

A closed schema: an unknown key is an error. Rules between the parts of a recipe are in `rules.py`; whatever needs the
model (does a target match, can a tensor take a format) is checked by `mote_quant.anatomy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, TypeAdapter, model_validator

from mote_quant.recipe.mistakes import Mistake, refuse, refuse_keys, refuse_option
from mote_quant.recipe.roles import ROLES as ROLES
from mote_quant.recipe.roles import Role as Role
from mote_quant.recipe.rules import Outline, OutlineStep, broken_rules
from mote_quant.recipe.scalars import (
    Fraction,
    GroupSize,
    LayerIndex,
    NotNegative,
    Positive,
    PositiveInt,
    Seed,
    Several,
    Target,
    Text,
    Tokens,
)

FloatName = Literal["float32", "bfloat16", "float16"]
IntegerName = Literal["int8", "int4", "int3", "int2"]
LayerName = Literal["all", "every_other", "first_half", "second_half"]


class Closed(BaseModel):
    """A frozen model that refuses unknown keys, guessed types, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def idle(self) -> dict[str, str]:
        """The settings that mean nothing beside the others -> what would give them a meaning."""
        return {}

    def clashes(self) -> Iterator[Mistake]:
        """The settings that cannot stand together."""
        yield from ()

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        given = [(key, need) for key, need in self.idle().items() if key in self.model_fields_set]
        idle = [((key,), f"has a meaning only with {need}") for key, need in given]
        refuse([*idle, *self.clashes()])
        return self


class FloatBits(Closed):
    """Weights kept in a floating-point type."""

    format: FloatName


class IntegerBits(Closed):
    """Group integers. `group_size` counts input columns that share a scale; -1 is the whole row."""

    format: IntegerName
    group_size: GroupSize = -1
    symmetric: bool = True
    scale_dtype: FloatName = "float16"
    method: Literal["rtn", "gptq"] = "rtn"


class TernaryBits(Closed):
    """Weights in {-1, 0, +1} times a scale, found by quantization-aware training."""

    format: Literal["ternary"]
    granularity: Literal["tensor", "channel", "group"] = "tensor"
    group_size: PositiveInt = 128
    packing: Literal["2bit", "base3"] = "2bit"
    activations: Literal["int8", "none"] = "int8"
    scale_dtype: Literal["float32", "float16"] = "float32"

    def idle(self) -> dict[str, str]:
        """`group_size` without groups."""
        return {} if self.granularity == "group" else {"group_size": "granularity: group"}


FORMATS: dict[str, type[FloatBits] | type[IntegerBits] | type[TernaryBits]] = {
    **dict.fromkeys(get_args(FloatName), FloatBits),
    **dict.fromkeys(get_args(IntegerName), IntegerBits),
    "ternary": TernaryBits,
}


def _read_bits(value: Any) -> FloatBits | IntegerBits | TernaryBits:
    """The spec that `format` names; a bare name is short for a mapping with nothing but that format."""
    if isinstance(value, FloatBits | IntegerBits | TernaryBits):
        return value
    settings = value if isinstance(value, dict) else {"format": value}
    name = settings.get("format")
    if "format" not in settings:
        refuse_keys(settings, known={key for kind in FORMATS.values() for key in kind.model_fields}, missing="format")
    if not isinstance(name, str) or name not in FORMATS:
        refuse_option(("format",), name, FORMATS)
    return FORMATS[str(name)].model_validate(settings)


Bits = Annotated[FloatBits | IntegerBits | TernaryBits, PlainValidator(_read_bits)]

_STRICT = ConfigDict(strict=True)
_LAYER_NAME: TypeAdapter[LayerName] = TypeAdapter(LayerName)
_LAYER_LIST: TypeAdapter[list[int]] = TypeAdapter(Several[LayerIndex], config=_STRICT)


def _read_layers(value: Any) -> str | list[int]:
    return (_LAYER_LIST if isinstance(value, list) else _LAYER_NAME).validate_python(value)


class Upcycle(Closed):
    """Dense feed-forward blocks become mixtures: the dense block stays as the shared expert, copies become experts."""

    layers: Annotated[LayerName | list[int], PlainValidator(_read_layers)] = "all"
    experts: PositiveInt = 4
    top_k: PositiveInt = 1
    shared: Literal["keep", "none"] = "keep"
    init: Literal["copy", "random"] = "copy"
    noise: NotNegative = 0.0
    combine: Literal["additive", "convex", "zero_init"] = "additive"
    mix: Fraction = 0.5
    normalize_gates: bool | None = None
    router_std: NotNegative = 0.02

    def idle(self) -> dict[str, str]:
        """`mix` without a convex combination."""
        return {} if self.combine == "convex" else {"mix": "combine: convex"}

    def clashes(self) -> Iterator[Mistake]:
        """More experts asked for than there are; a mixture with a shared expert that is not kept."""
        if self.top_k > self.experts:
            yield ("top_k",), f"must be at most the number of experts ({self.experts}), not {self.top_k}"
        if self.shared == "none" and self.combine != "additive":
            text = f"{self.combine} mixes with the shared expert, and shared: none keeps none; use combine: additive"
            yield ("combine",), text


class Train(Closed):
    """Train what `what` names, and nothing else."""

    what: Several[Target]
    data: Text
    steps: PositiveInt
    learning_rate: Positive = 1.0e-3
    batch_size: PositiveInt = 16
    gradient_accumulation: PositiveInt = 1
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: Fraction = 0.03
    weight_decay: NotNegative = 0.0
    max_grad_norm: Positive = 1.0
    balance_loss: NotNegative = 0.01
    z_loss: NotNegative = 0.0
    ternary_ramp: Fraction = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    max_length: Tokens | None = None
    checkpoint_every: PositiveInt | None = None


class Calibration(Closed):
    """The samples a data-driven method looks at."""

    data: Text
    samples: PositiveInt = 128
    batch_size: PositiveInt = 8
    max_length: Tokens | None = None


class Quantize(Closed):
    """Give every module the format `bits` names for it."""

    calibration: Calibration | None = None
    unhit: Literal["fallback_rtn", "error"] = "fallback_rtn"


StepConfig = Upcycle | Train | Quantize
STEPS: dict[str, type[Upcycle] | type[Train] | type[Quantize]] = {
    "upcycle": Upcycle,
    "train": Train,
    "quantize": Quantize,
}


def _bare_verb(value: Any) -> Any:
    """`- quantize:` and `- quantize` say the verb and leave every setting at its default."""
    if isinstance(value, str) and value in STEPS:
        return {value: {}}
    if isinstance(value, dict) and len(value) == 1:
        return {verb: {} if settings is None and verb in STEPS else settings for verb, settings in value.items()}
    return value


class Step(Closed):
    """One entry of `pipeline`: exactly one verb with its settings."""

    upcycle: Upcycle | None = None
    train: Train | None = None
    quantize: Quantize | None = None

    def clashes(self) -> Iterator[Mistake]:
        """No verb, or several."""
        if len(self.model_fields_set) != 1:
            yield (), f"a pipeline entry is exactly one of {', '.join(STEPS)}, with its settings"

    @property
    def name(self) -> str:
        """The verb: `upcycle`, `train` or `quantize`."""
        return next(iter(self.model_fields_set))

    @property
    def config(self) -> StepConfig:
        """The verb's settings."""
        config: StepConfig = getattr(self, self.name)
        return config


PipelineStep = Annotated[Step, BeforeValidator(_bare_verb)]


class Recipe(Closed):
    """A whole recipe. `bits` maps targets to formats, first match wins; `pipeline` is run in order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    description: str = ""
    model: Text | None = None
    seed: Seed = 0
    bits: dict[Target, Bits] = {}
    pipeline: Annotated[list[PipelineStep], Field(min_length=1)]

    def clashes(self) -> Iterator[Mistake]:
        """Parts that do not follow from one another."""
        yield from broken_rules(outline(self))


def outline(recipe: Recipe) -> Outline:
    """The recipe as its rules see it."""
    steps = [OutlineStep(step.name, step.config.model_dump()) for step in recipe.pipeline]
    return Outline({target: spec.model_dump() for target, spec in recipe.bits.items()}, steps)
