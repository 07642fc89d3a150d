"""bitsandbytes' 4-bit floats: each code picks one of 16 values, which is multiplied by the scale of its block.

A block is `block_size` consecutive weights of the flattened, row-major weight, so it may straddle rows; its scale is
its largest magnitude. Bytes are those of bitsandbytes (the first of two codes in the high half), and with
`double_quant` the scales are held as it holds them: a table of 256 values, codes into it, a scale for every 256
scales, and what is added to all of them. nf4: Dettmers et al. 2023 (QLoRA), appendix E.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.errors import FormatError
from mote_quant.formats.base import Codes, Shape, TensorSpec, check_tensor, check_tensors, checked_scale
from mote_quant.formats.groups import join_groups, split_groups
from mote_quant.recipe.schema import CodebookBits

_NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
_FP4_MAGNITUDES = tuple(value / 12 for value in (0, 0.0625, 8, 12, 4, 6, 2, 3))
_FP4 = (*_FP4_MAGNITUDES, *(0.0 - value for value in _FP4_MAGNITUDES))

TABLES: Mapping[str, tuple[float, ...]] = {"nf4": _NF4, "fp4": _FP4}
"""The 16 values of a format, in the order of their codes."""
SCALE_TABLE, SCALE_SCALE, SCALE_OFFSET = "weight_scale_table", "weight_scale_scale", "weight_scale_offset"
"""The companions of `weight_scale` with `double_quant`: a scale is table[code] * scale_scale + offset."""
SCALES_PER_SCALE = 256


def table_of(format: str, device: torch.device | None = None) -> Tensor:
    """The 16 values as float32."""
    return torch.tensor(TABLES[format], dtype=torch.float32, device=device)


@dataclass(frozen=True)
class CodebookFormat:
    """`Format` for a `CodebookBits` spec."""

    spec: CodebookBits

    @property
    def paper_bits(self) -> float:
        """Bits of one code: scales are left out."""
        return 4.0

    def layout(self, shape: Shape) -> dict[str, TensorSpec]:
        """`weight` [bytes, 1, 1] and `weight_scale` [blocks]; with `double_quant` also what reads the scales."""
        weights = shape[0] * shape[1]
        blocks = -(-weights // self.spec.block_size)
        weight = {"weight": TensorSpec((-(-weights // 2), 1, 1), torch.uint8)}
        if not self.spec.double_quant:
            return weight | {"weight_scale": TensorSpec((blocks,), torch.float32)}
        return weight | {
            "weight_scale": TensorSpec((blocks,), torch.uint8),
            SCALE_TABLE: TensorSpec((256,), torch.float32),
            SCALE_SCALE: TensorSpec((-(-blocks // SCALES_PER_SCALE),), torch.float32),
            SCALE_OFFSET: TensorSpec((1,), torch.float32),
        }

    def compress(self, codes: Codes) -> dict[str, Tensor]:
        """Codes 0 to 15 [out, in] of any integer type, scales [blocks], the companions that `layout` names."""
        if codes.zero is not None:
            raise FormatError(f"{self.spec.format} takes no zero points")
        values = self._checked(codes.codes)
        layout = self.layout((values.shape[0], values.shape[1]))
        given = {"weight_scale": codes.scale, **codes.companions}
        check_tensors(given, {name: spec for name, spec in layout.items() if name != "weight"})
        scales = {name: _checked_scale(given[name], spec, name) for name, spec in layout.items() if name != "weight"}
        return {"weight": self._pack(values)} | scales

    def decompress(self, tensors: Mapping[str, Tensor], shape: Shape, dtype: torch.dtype) -> Tensor:
        """table[code] * scale of the block in float32, then cast."""
        check_tensors(tensors, self.layout(shape))
        # Looking up a byte at a time gives both of its values at once.
        table = table_of(self.spec.format, tensors["weight"].device)
        values = F.embedding(tensors["weight"].flatten().int(), torch.cartesian_prod(table, table))
        flat = values.view(1, -1)[:, : shape[0] * shape[1]]
        blocks = split_groups(flat, self.spec.block_size) * self.scales(tensors).unsqueeze(-1)
        return join_groups(blocks, shape[0] * shape[1]).view(shape).to(dtype)

    def codes(self, tensors: Mapping[str, Tensor], shape: Shape) -> Tensor:
        """uint8 codes [out, in]; every byte is two of them."""
        check_tensors(tensors, self.layout(shape))
        packed = tensors["weight"].flatten()
        return torch.stack([packed >> 4, packed & 15], -1).flatten()[: shape[0] * shape[1]].view(shape)

    def scales(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The float32 scale of every block."""
        scale = tensors["weight_scale"]
        if not self.spec.double_quant:
            return scale
        values = F.embedding(scale.int(), tensors[SCALE_TABLE].unsqueeze(-1)).view(1, -1)
        scaled = split_groups(values, SCALES_PER_SCALE) * tensors[SCALE_SCALE].unsqueeze(-1)
        return join_groups(scaled, len(scale)).flatten() + tensors[SCALE_OFFSET]

    def _checked(self, codes: Tensor) -> Tensor:
        if codes.is_floating_point() or codes.dim() != 2:
            raise FormatError(f"codes must be integers [out, in], found {codes.dtype} {list(codes.shape)}")
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) > 15):
            found = f"{int(codes.min())} to {int(codes.max())}"
            raise FormatError(f"codes of {self.spec.format} must lie between 0 and 15, found {found}")
        return codes.to(torch.uint8)

    def _pack(self, codes: Tensor) -> Tensor:
        flat = F.pad(codes.flatten(), (0, codes.numel() % 2), value=TABLES[self.spec.format].index(0.0))
        return (flat[0::2] << 4 | flat[1::2]).view(-1, 1, 1)


def _checked_scale(scale: Tensor, spec: TensorSpec, name: str) -> Tensor:
    if spec.dtype.is_floating_point:
        return checked_scale(scale, spec, name)
    check_tensor(name, scale, spec)
    return scale.detach().contiguous()
