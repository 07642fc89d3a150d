"""A linear layer whose weight is held as packed bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from mote_quant.errors import FormatError
from mote_quant.formats.base import Codes, Shape, check_tensors
from mote_quant.formats.registry import format_for
from mote_quant.kernels import table
from mote_quant.kernels.ops import OPS_OF, format_of, matmul, spec_text, unwatched
from mote_quant.kernels.watching import fetched
from mote_quant.kernels.weight import PackedWeight
from mote_quant.recipe.schema import PackedBits, ScaledBits
from mote_quant.ternary.activation import fake_quantize_activations


class PackedLinear(nn.Module):
    """y = x @ dequantized(weight)^T + bias. The buffers are those of the format's layout; only the bias is a parameter.

    `dtype` is the type the weight is unpacked to by `dequantize`; in `forward` the type of the input decides.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        spec: PackedBits,
        shape: Shape,
        tensors: dict[str, Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        """From stored tensors; `empty` and `pack` are the ways to make one."""
        super().__init__()
        self.spec = spec
        self.format = format_for(spec)
        self.out_features, self.in_features = shape
        self.dtype = dtype
        self._names = tuple(self.format.layout(shape))
        for name in self._names:
            self.register_buffer(name, tensors[name])
        self._kept: dict[str, tuple[list[Any], PackedWeight]] = {}
        self._spec, self._spec_behind = spec_text(spec), spec_text(_taking_rounded_input(spec))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @classmethod
    def empty(
        cls,
        spec: PackedBits,
        in_features: int,
        out_features: int,
        bias: bool,
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> Self:
        """A layer of the right shapes, to be loaded into; on any device, meta too."""
        shape = (out_features, in_features)
        layout = format_for(spec).layout(shape)
        tensors = {name: torch.zeros(part.shape, dtype=part.dtype, device=device) for name, part in layout.items()}
        return cls(spec, shape, tensors, torch.zeros(out_features, dtype=dtype, device=device) if bias else None, dtype)

    @classmethod
    def pack(
        cls,
        spec: PackedBits,
        codes: Codes,
        bias: Tensor | None,
        dtype: torch.dtype,
    ) -> Self:
        """Codes [out, in] with all that belongs to them -> a layer; FormatError if they do not fit the spec."""
        tensors = format_for(spec).compress(codes)
        copied = None if bias is None else bias.detach().clone()
        rows, columns = codes.codes.shape
        return cls(spec, (rows, columns), tensors, copied, dtype)

    @property
    def packed(self) -> PackedWeight:
        """The weight as it is stored."""
        return PackedWeight(dict(self.named_buffers(recurse=False)), self._shape, self.format)

    @property
    def spec_text(self) -> str:
        """The spec as ops are given it."""
        return self._spec

    def codes(self) -> Tensor:
        """The integer codes [out, in]; FormatError for damaged bytes."""
        return self.format.codes(self.packed.tensors, self._shape)

    def dequantize(self) -> Tensor:
        """The dense weight [out, in] in `dtype`."""
        return self.format.decompress(self.packed.tensors, self._shape, self.dtype)

    def quantize_input(self, x: Tensor) -> Tensor:
        """x [..., in] as the matrix product will see it."""
        return fake_quantize_activations(x) if self._spec != self._spec_behind else x

    def multiply(self, x: Tensor) -> Tensor:
        """The product with an input that `quantize_input` has seen."""
        # A weight that is fetched for each call (accelerate) is not there before: rounding again changes nothing.
        return cast(Tensor, self(x)) if fetched(self) else self._product(x, self._spec_behind)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the type of x; FormatError for an input that is not floating-point."""
        return self._product(x, self._spec)

    def _product(self, x: Tensor, spec: str) -> Tensor:
        if not x.is_floating_point():
            raise FormatError(f"a packed linear layer takes floating-point input, found {x.dtype}")
        if x.shape[-1] != self.in_features:
            raise FormatError(f"a packed linear layer of {self.in_features} columns cannot take x {list(x.shape)}")
        offsets = self._parameters["bias"]
        bias = None if offsets is None else offsets.to(x.dtype)
        if unwatched(x):
            return table.matmul(OPS_OF[type(self.spec)], x, self._weight(spec), bias)
        stored = cast("dict[str, Tensor]", self._buffers)
        return matmul(OPS_OF[type(self.spec)], x, [stored[name] for name in self._names], bias, spec, self._shape)

    def _weight(self, spec: str) -> PackedWeight:
        """The weight as kernels take it, made anew only when a buffer was."""
        stored = cast("dict[str, Tensor]", self._buffers)
        kept = self._kept.get(spec)
        state = [(tensor.data_ptr(), tensor.numel(), tensor.dtype) for tensor in map(stored.__getitem__, self._names)]
        if kept is None or kept[0] != state or any(kept[1].tensors[name] is not stored[name] for name in self._names):
            weight = PackedWeight({name: stored[name] for name in self._names}, self._shape, format_of(spec))
            check_tensors(weight.tensors, weight.format.layout(self._shape))
            if fetched(self):
                return weight
            kept = self._kept[spec] = state, weight
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

    def extra_repr(self) -> str:
        """As in nn.Linear, with the format."""
        bias = self.bias is not None
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={bias}, format={self.spec.format}"
        )

    @property
    def _shape(self) -> Shape:
        return self.out_features, self.in_features

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # Codes were computed against scales of one exact type: a cast of the model must move them, never round them.
        stored = {id(buffer) for buffer in self.buffers(recurse=False)}

        def keep_type(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if id(tensor) in stored and moved.dtype != tensor.dtype else moved

        self._kept.clear()
        probe = torch.empty(0, dtype=self.dtype, device=next(self.buffers()).device)
        self.dtype = fn(probe).dtype
        super()._apply(keep_type, recurse)  # type: ignore[no-untyped-call]
        return self


def _taking_rounded_input(spec: PackedBits) -> PackedBits:
    """The same weight, for an input that has been rounded to int8 already."""
    return spec.model_copy(update={"activations": "none"}) if isinstance(spec, ScaledBits) else spec
