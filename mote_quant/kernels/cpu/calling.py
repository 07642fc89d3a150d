"""What the adaptors of the C functions share: element types and errors as C numbers them, and declared signatures."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mote_quant.errors import KernelError
from mote_quant.kernels.cpu.library import library

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""`MoteType` of src/abi.h."""
_ERRORS = {1: "a tensor or a size it does not take", 2: "out of memory"}
"""`MoteError` of src/abi.h."""


def declared(signatures: Mapping[str, Sequence[Any]]) -> ctypes.CDLL:
    """The library with the argument types of these functions; KernelError where there is none."""
    found = library()
    if found is None:
        raise KernelError("no CPU kernels: ask `supports` first")
    for name, arguments in signatures.items():
        getattr(found, name).argtypes = arguments
    return found


def check(name: str, error: int) -> None:
    """KernelError for a C function that returned anything but 0."""
    if error:
        raise KernelError(f"{name} failed with error {error}: {_ERRORS.get(error, 'unknown')}")
