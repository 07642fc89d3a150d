"""A linear layer whose weight is held as packed bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from mote_quant.errors import FormatError
from mote_quant.formats.base import Codes, Shape
from mote_quant.formats.registry import format_for
from mote_quant.kernels.ops import Matmul, PackedWeight, binary_matmul, codebook_matmul, int_matmul, ternary_matmul
from mote_quant.recipe.schema import BinaryBits, CodebookBits, IntegerBits, PackedBits, ScaledBits, TernaryBits
from mote_quant.ternary.activation import fake_quantize_activations

_MATMULS: dict[type, Matmul] = {
    TernaryBits: ternary_matmul,
    BinaryBits: binary_matmul,
    IntegerBits: int_matmul,
    CodebookBits: codebook_matmul,
}


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
        for name in self.format.layout(shape):
            self.register_buffer(name, tensors[name])
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

    def codes(self) -> Tensor:
        """The integer codes [out, in]; FormatError for damaged bytes."""
        return self.format.codes(self.packed.tensors, self._shape)

    def dequantize(self) -> Tensor:
        """The dense weight [out, in] in `dtype`."""
        return self.format.decompress(self.packed.tensors, self._shape, self.dtype)

    def quantize_input(self, x: Tensor) -> Tensor:
        """x [..., in] as the matrix product will see it; FormatError for an input that is not floating-point."""
        if not x.is_floating_point():
            raise FormatError(f"a packed linear layer takes floating-point input, found {x.dtype}")
        quantized = isinstance(self.spec, ScaledBits) and self.spec.activations == "int8"
        return fake_quantize_activations(x) if quantized else x

    def multiply(self, x: Tensor) -> Tensor:
        """The product with an input that `quantize_input` has seen."""
        return _MATMULS[type(self.spec)](x, self.packed, None if self.bias is None else self.bias.to(x.dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out] in the type of x."""
        return self.multiply(self.quantize_input(x))

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

        probe = torch.empty(0, dtype=self.dtype, device=next(self.buffers()).device)
        self.dtype = fn(probe).dtype
        super()._apply(keep_type, recurse)  # type: ignore[no-untyped-call]
        return self
