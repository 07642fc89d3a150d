"""The `train` step of a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainValidator, TypeAdapter

from mote_quant.recipe.closed import Closed
from mote_quant.recipe.learning import Distill, Guard, Search, Validation
from mote_quant.recipe.mistakes import Mistake
from mote_quant.recipe.scalars import (
    Fraction,
    NotNegative,
    NotNegativeInt,
    Positive,
    PositiveInt,
    Several,
    Target,
    Text,
    Tokens,
)

_DATA_NAME: TypeAdapter[str] = TypeAdapter(Text, config=ConfigDict(strict=True))
_WEIGHTED: TypeAdapter[dict[str, float]] = TypeAdapter(
    Annotated[dict[Text, Positive], Field(min_length=1)], config=ConfigDict(strict=True, allow_inf_nan=False)
)


def _read_data(value: Any) -> str | dict[str, float]:
    return (_WEIGHTED if isinstance(value, dict) else _DATA_NAME).validate_python(value)


class Train(Closed):
    """Train what `what` names, and nothing else.

    `balance_loss` and `z_loss` are of routers that are trained; where the model came with them, `balance_loss` weighs
    the loss that its own forward adds for them. `learning_rates` gives targets rates of their own, first match wins.
    `distill` also learns from another model's predictions. `compile` is torch.compile: seconds to minutes before the
    first step, shorter steps afterwards, and a resumed run that is the same up to rounding.
    `latents: bfloat16` holds trained matrices (with precision float32: only latent ones) in 2 bytes, and rounds each
    step stochastically; `optimizer` has the names that HF Trainer gives it; `gradient_checkpointing` computes each
    layer again in backward instead of keeping what it made.
    `data` can name several sources, each with the weight of its share. With `stream` they are read as they are needed:
    `shuffle_buffer` rows are shuffled at a time, the first `validation_rows` are held out, and up to `bad_rows` that
    are malformed are left out. `pack` puts several samples into a row of `max_length` tokens, none of which sees
    another; `bucket` makes batches of samples of like lengths.
    Without `fake_quantize` weights that will be quantized, and their inputs, stay in full precision all through this
    training and are rounded at its end: the control without QAT.
    """

    what: Several[Target]
    data: Annotated[str | dict[str, float], PlainValidator(_read_data)]
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
    fake_quantize: bool = True
    precision: Literal["float32", "bfloat16"] = "float32"
    latents: Literal["float32", "bfloat16"] = "float32"
    optimizer: Literal["adamw_torch", "adamw_bnb_8bit", "adamw_torch_8bit"] = "adamw_torch"
    gradient_checkpointing: bool = False
    max_length: Tokens | None = None
    stream: bool = False
    shuffle_buffer: PositiveInt = 1000
    validation_rows: NotNegativeInt = 0
    bad_rows: NotNegativeInt = 0
    pack: bool = False
    bucket: bool = False
    checkpoint_every: PositiveInt | None = None
    learning_rates: dict[Target, Positive] = Field(default_factory=dict)
    distill: Distill | None = None
    guard: Guard | None = None
    validation: Validation | None = None
    search: Search | None = None
    compile: bool = False

    @property
    def sources(self) -> dict[str, float]:
        """The names of the data, and their weights."""
        return {self.data: 1.0} if isinstance(self.data, str) else self.data

    def idle(self) -> dict[str, str]:
        """What is said of a stream, without one."""
        return {} if self.stream else dict.fromkeys(("shuffle_buffer", "validation_rows", "bad_rows"), "stream: true")

    def clashes(self) -> Iterator[Mistake]:
        """A ramp towards what is never reached; rows without a length, or with two; rows or states that nobody sees."""
        if self.pack and self.max_length is None:
            yield ("pack",), "needs max_length: how many tokens a row has"
        if self.stream and not self.validation_rows:
            for key in ("validation", "search"):
                if getattr(self, key) is not None:
                    yield (key,), "looks at rows that are held out: say how many of a stream, with validation_rows"
        if self.pack and self.bucket:
            yield ("bucket",), "packed rows are all of one length; take pack or bucket"
        if self.ternary_ramp and not self.fake_quantize:
            yield (
                ("ternary_ramp",),
                "blends quantized weights in, which fake_quantize: false leaves out; take one of the two",
            )
        if self.compile and self.distill and self.distill.hidden:
            yield ("distill", "hidden"), "looks between the layers, which compile: true joins; take one of the two"
