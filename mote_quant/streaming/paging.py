"""Give back the memory of mapped files: pages that were read once stay resident until somebody says otherwise."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mote_quant.anatomy.structure import decoder_layers

_MAPS = Path("/proc/self/maps")
_SUFFIX = ".safetensors"
_DONTNEED = 4

Range = tuple[int, int]


def release(tensors: Iterable[Tensor]) -> None:
    """Drop the resident pages of those of `tensors` that lie in a mapped safetensors file; they are read again on use.

    For tensors that nobody wrote to: what was changed in memory would be lost. Does nothing where the system does not
    say what is mapped (no /proc).
    """
    files = list(_mapped_files())
    for tensor in tensors:
        start, end = _whole_pages(tensor)
        if start < end and any(low <= start and end <= high for low, high in files):
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _DONTNEED)


def return_free_memory() -> None:
    """Give freed memory back to the system, which glibc keeps for later (elsewhere: nothing)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def release_module(module: nn.Module) -> None:
    """`release` all parameters and buffers of `module`."""
    release(chain(module.parameters(), module.buffers()))


def releasing(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors, each released once the next one is asked for."""
    for name, tensor in tensors:
        yield name, tensor
        release([tensor])


@contextmanager
def layer_by_layer(model: nn.Module) -> Iterator[None]:
    """While open, a forward pass of `model` keeps no mapped page of a decoder layer that it has passed."""
    handles = [layer.register_forward_hook(_let_go) for _, layer in decoder_layers(model)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _let_go(module: nn.Module, args: Any, output: Any) -> None:
    release_module(module)


def _whole_pages(tensor: Tensor) -> Range:
    """The addresses of the pages that hold nothing but `tensor`."""
    if tensor.device.type != "cpu":
        return 0, 0
    start, size = tensor.data_ptr(), mmap.PAGESIZE
    return -(-start // size) * size, (start + tensor.nbytes) // size * size


def _mapped_files() -> Iterator[Range]:
    """The address ranges of this process that are private maps of safetensors files."""
    for line in _MAPS.read_text().splitlines() if _MAPS.exists() else ():
        addresses, mode, *rest = line.split(maxsplit=5)
        if mode.endswith("p") and rest[-1].removesuffix(" (deleted)").endswith(_SUFFIX):
            low, high = addresses.split("-")
            yield int(low, 16), int(high, 16)
