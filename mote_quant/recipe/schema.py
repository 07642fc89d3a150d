"""The recipe: what weighs what (`bits`) and what happens, in order (`pipeline`).

A closed schema: an unknown key is an error. Rules between the parts of a recipe are in `rules.py`; whatever needs the
model (does a target match, can a tensor take a format) is checked by `mote_quant.anatomy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, PlainValidator, TypeAdapter

from mote_quant.recipe.bits import FORMATS as FORMATS
from mote_quant.recipe.bits import PACKED as PACKED
from mote_quant.recipe.bits import AutoBits as AutoBits
from mote_quant.recipe.bits import BinaryBits as BinaryBits
from mote_quant.recipe.bits import Bits as Bits
from mote_quant.recipe.bits import CodebookBits as CodebookBits
from mote_quant.recipe.bits import FloatBits as FloatBits
from mote_quant.recipe.bits import FloatName as FloatName
from mote_quant.recipe.bits import IntegerBits as IntegerBits
from mote_quant.recipe.bits import IntegerName as IntegerName
from mote_quant.recipe.bits import PackedBits as PackedBits
from mote_quant.recipe.bits import QatBits as QatBits
from mote_quant.recipe.bits import ScaledBits as ScaledBits
from mote_quant.recipe.bits import TernaryBits as TernaryBits
from mote_quant.recipe.bits import trains as trains
from mote_quant.recipe.bits import wording as wording
from mote_quant.recipe.closed import Closed as Closed
from mote_quant.recipe.learning import Distill as Distill
from mote_quant.recipe.learning import Guard as Guard
from mote_quant.recipe.learning import Search as Search
from mote_quant.recipe.learning import Validation as Validation
from mote_quant.recipe.mistakes import Mistake
from mote_quant.recipe.roles import ROLES as ROLES
from mote_quant.recipe.roles import Role as Role
from mote_quant.recipe.rules import Outline, OutlineStep, broken_rules
from mote_quant.recipe.scalars import (
    Fraction,
    LayerIndex,
    NotNegative,
    PositiveInt,
    Real,
    Seed,
    Several,
    Target,
    Text,
    Tokens,
)
from mote_quant.recipe.training import Train as Train

LayerName = Literal["all", "every_other", "first_half", "second_half"]


_STRICT = ConfigDict(strict=True)
_LAYER_NAME: TypeAdapter[LayerName] = TypeAdapter(LayerName)
_LAYER_LIST: TypeAdapter[list[int]] = TypeAdapter(Several[LayerIndex], config=_STRICT)


def _read_layers(value: Any) -> str | list[int]:
    return (_LAYER_LIST if isinstance(value, list) else _LAYER_NAME).validate_python(value)


class Upcycle(Closed):
    """Dense feed-forward blocks become mixtures: the dense block stays as the shared expert, copies become experts.

    `split` cuts each copy into so many narrow experts (DeepSeekMoE, arXiv 2401.06066). With `lora_rank` experts are no
    copies but low-rank changes of the shared expert (LLaVA-MoLE, arXiv 2401.16160; MixLoRA, arXiv 2404.15159).
    """

    layers: Annotated[LayerName | list[int], PlainValidator(_read_layers)] = "all"
    experts: PositiveInt = 4
    top_k: PositiveInt = 1
    shared: Literal["keep", "none"] = "keep"
    init: Literal["copy", "random"] = "copy"
    noise: NotNegative = 0.0
    split: PositiveInt = 1
    lora_rank: PositiveInt | None = None
    combine: Literal["additive", "convex", "zero_init"] = "additive"
    mix: Fraction = 0.5
    normalize_gates: bool | None = None
    router_std: NotNegative = 0.02

    def idle(self) -> dict[str, str]:
        """`mix` without a convex combination; what is said of copies, where experts are low-rank changes."""
        mix = {} if self.combine == "convex" else {"mix": "combine: convex"}
        copies = () if self.lora_rank is None else ("init", "noise", "split")
        return mix | dict.fromkeys(copies, "experts of their own; leave it out, or lora_rank")

    def clashes(self) -> Iterator[Mistake]:
        """More experts asked for than there are; a shared expert that is needed and not kept."""
        if self.top_k > self.experts:
            yield ("top_k",), f"must be at most the number of experts ({self.experts}), not {self.top_k}"
        if self.shared == "none" and self.combine != "additive":
            text = f"{self.combine} mixes with the shared expert, and shared: none keeps none; use combine: additive"
            yield ("combine",), text
        if self.lora_rank is not None and self.shared == "none":
            yield ("lora_rank",), "experts are changes of the shared expert, and shared: none keeps none; use keep"
        if self.lora_rank is not None and self.combine != "additive":
            text = f"{self.combine} has no meaning for low-rank changes of the shared expert; use combine: additive"
            yield ("combine",), text


class Calibration(Closed):
    """The samples a data-driven method looks at."""

    data: Text
    samples: PositiveInt = 128
    batch_size: PositiveInt = 8
    max_length: Tokens | None = None


class Quantize(Closed):
    """Give every module the format `bits` names for it.

    `unhit` is what becomes of an expert that no calibration token reached: rounded to nearest, shown every token of
    its layer, or an error. `measure` is what the report says of the outputs: `roles` (logits before and after each
    role; keeps the packed weights beside the dense ones until the end), `model` (before and after, no more) or `none`
    (no sample is held out).
    `skip_rate` is the share of tokens whose routed expert is skipped because the router is least sure of it.
    `keep_latents` holds the trained experts' latent weights, to train on; otherwise they give way to packed codes.
    """

    calibration: Calibration | None = None
    unhit: Literal["fallback_rtn", "route_all", "error"] = "fallback_rtn"
    measure: Literal["roles", "model", "none"] = "roles"
    skip_rate: Annotated[Real, Field(ge=0.0, lt=1.0)] = 0.0
    keep_latents: bool = False


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
    bits: Annotated[dict[Target, Bits], Field(default_factory=dict)]
    pipeline: Annotated[list[PipelineStep], Field(min_length=1)]

    def clashes(self) -> Iterator[Mistake]:
        """Parts that do not follow from one another."""
        yield from broken_rules(outline(self))


def outline(recipe: Recipe) -> Outline:
    """The recipe as its rules see it."""
    steps = [OutlineStep(step.name, step.config.model_dump()) for step in recipe.pipeline]
    return Outline({target: spec.model_dump() for target, spec in recipe.bits.items()}, steps)
