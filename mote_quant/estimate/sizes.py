"""The sizes that memory and work are counted in, read off a plan and the skeleton that it was made on."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

from torch import nn

from mote_quant.anatomy.inventory import Parameter, inventory
from mote_quant.anatomy.structure import decoder_layers, linear_shape, under
from mote_quant.planning import Plan
from mote_quant.recipe.schema import AutoBits, Bits, CodebookBits, IntegerBits, Role, trains

FLOAT = 4
"""Bytes of a float32: latent weights, gradients, Hessians."""


@dataclass(frozen=True)
class Rounded:
    """A weight [rows, columns] that the quantize step will find codes for."""

    name: str
    rows: int
    columns: int
    spec: IntegerBits | CodebookBits

    @property
    def weights(self) -> int:
        """How many there are."""
        return self.rows * self.columns


@dataclass(frozen=True)
class Sizes:
    """A planned model in numbers. `skeleton` is the meta model as `plan_on` leaves it: finished, packed."""

    plan: Plan
    skeleton: nn.Module

    @cached_property
    def text(self) -> Any:
        """The config of the language model."""
        return cast(Any, self.skeleton).config.get_text_config()

    @property
    def hidden(self) -> int:
        """Width of the hidden states."""
        return int(self.text.hidden_size)

    @property
    def vocabulary(self) -> int:
        """How many logits a token has."""
        return int(self.text.vocab_size)

    @property
    def dense_bytes(self) -> int:
        """The model as it is given."""
        return self.plan.dense.resident_bytes

    @property
    def result_bytes(self) -> int:
        """The finished model, in its file."""
        return self.plan.result.stored_bytes

    @cached_property
    def width(self) -> float:
        """Bytes that a number of the given model takes on average."""
        return self.plan.dense.stored_bytes / max(sum(w.parameters for w in self.plan.dense.roles.values()), 1)

    @cached_property
    def held(self) -> list[Parameter]:
        """Every tensor of the finished model."""
        return inventory(self.skeleton)

    @cached_property
    def layers(self) -> list[str]:
        """Paths of the decoder layers."""
        return [path for path, _ in decoder_layers(self.skeleton)]

    def of_role(self, *roles: Role) -> int:
        """Numbers of the finished model in these roles."""
        return sum(weight.parameters for role, weight in self.plan.result.roles.items() if role in roles)

    @cached_property
    def experts_bytes(self) -> int:
        """What up-cycling adds: routed experts as they are built (those that train for a format are float32)."""
        latent = sum(bool(layout.qat) for layout in self.plan.layouts)
        width = FLOAT if latent else self.width
        return round(self.of_role("routed") * width) if self.plan.layouts else 0

    @cached_property
    def active(self) -> int:
        """Weights that a token of text is multiplied by: top-k of the experts, and the head even where it is tied."""
        shares = [layout.top_k / layout.experts for layout in self.plan.layouts]
        routed = self.of_role("routed") * (sum(shares) / len(shares) if shares else 1)
        head = self.of_role("head") or self.hidden * self.vocabulary
        return round(self.of_role("attention", "ffn", "shared", "router") + routed) + head

    @cached_property
    def feed_forward(self) -> int:
        """Widest inner size of a dense or shared feed-forward network of a decoder layer; 0 without one."""
        return self._widest("ffn", "shared")

    @cached_property
    def attention(self) -> int:
        """Numbers a token leaves in a layer's attention: queries, keys, values and what is made of them."""
        heads = int(getattr(self.text, "num_attention_heads", 1))
        size = int(getattr(self.text, "head_dim", None) or self.hidden // heads)
        return 2 * size * (heads + int(getattr(self.text, "num_key_value_heads", None) or heads))

    @cached_property
    def rounded(self) -> list[Rounded]:
        """Every weight that the quantize step rounds."""
        return [
            Rounded(name, shape[1], shape[0], spec)
            for name, spec in ((name, _found_by(spec)) for name, spec in self.plan.formats.items())
            if spec is not None and (shape := linear_shape(self.skeleton.get_submodule(name))) is not None
        ]

    @cached_property
    def packed_bytes(self) -> int:
        """All packed tensors of the finished model."""
        packed = {rounded.name for rounded in self.rounded}
        return sum(parameter.nbytes for parameter in self.held if parameter.module in packed)

    def stages(self) -> dict[str, list[Parameter]]:
        """Layer path -> its tensors; under "" all that is in no decoder layer."""
        found: dict[str, list[Parameter]] = {path: [] for path in ["", *self.layers]}
        for parameter in self.held:
            found[self.stage_of(parameter.module)].append(parameter)
        return found

    def stage_of(self, module: str) -> str:
        """The decoder layer that a module lies in, or ""."""
        return next((path for path in self.layers if under(module, path)), "")

    def _widest(self, *roles: Role) -> int:
        shapes: Counter[str] = Counter()
        for parameter in self.held:
            shape = linear_shape(self.skeleton.get_submodule(parameter.module))
            if parameter.role in roles and shape is not None and self.stage_of(parameter.module):
                shapes[parameter.module] = max(shape)
        return max(shapes.values(), default=0)


def _found_by(spec: Bits) -> IntegerBits | CodebookBits | None:
    """The spec where the quantize step finds codes for it; None for floats and what training has found."""
    uniform = spec.uniform if isinstance(spec, AutoBits) else spec
    return uniform if isinstance(uniform, IntegerBits | CodebookBits) and not trains(spec) else None


def numbers(parameters: list[Parameter]) -> int:
    """How many numbers of the model some tensors hold."""
    return sum(parameter.count for parameter in parameters)


def largest(parameters: list[Parameter]) -> int:
    """Numbers of the largest one."""
    return max((math.prod(parameter.shape) for parameter in parameters), default=0)
