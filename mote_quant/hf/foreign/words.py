"""Codes in 32-bit words, as GPTQ and compressed-tensors pack them: one stream of bits a row, lowest bits first.

Code i of a row takes bits [i * bits, (i + 1) * bits) of it, so 3-bit codes may straddle words. Bytes are little-endian,
as torch's are on every machine it runs on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mote_quant.formats.base import TensorSpec, check_tensor
from mote_quant.formats.bits import pack_bits, packed_shape, unpack_bits

_BYTES = 4


def words_of(count: int, bits: int) -> int:
    """How many words hold `count` codes."""
    return -(-count * bits // (8 * _BYTES))


def unpack_words(words: Tensor, bits: int, count: int) -> Tensor:
    """int32 [rows, words] -> uint8 codes [rows, count]; FormatError for another number of words."""
    check_tensor("packed words", words, TensorSpec((len(words), words_of(count, bits)), torch.int32))
    rows, units, width = packed_shape(len(words), count, bits)
    stream = _resized(words.contiguous().view(torch.uint8), units * width)
    return unpack_bits(stream.view(rows, units, width), bits, count)


def pack_words(codes: Tensor, bits: int) -> Tensor:
    """uint8 codes [rows, count] -> int32 [rows, words]; `unpack_words` is its inverse."""
    count = words_of(codes.shape[1], bits)
    stream = _resized(pack_bits(codes, bits).flatten(1), _BYTES * count)
    return stream.flatten().view(torch.int32).view(len(codes), count)


def _resized(stream: Tensor, length: int) -> Tensor:
    """The rows, filled with zeros or cut to `length`: both are padding."""
    return F.pad(stream, (0, length - stream.shape[1])).contiguous()
