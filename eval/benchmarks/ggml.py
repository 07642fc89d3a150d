"""The kernels of llama.cpp, called through the shared libraries of ggml (see `find`), by ctypes.

A product is a graph of one node, computed by ggml's CPU backend from a float32 input, which it rounds to int8 itself.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from ctypes import POINTER, c_bool, c_char_p, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

VARIABLE = "MOTE_BENCH_GGML"
TYPES = {"F32": 0, "Q4_0": 2, "Q8_0": 8, "TQ1_0": 34, "TQ2_0": 35}
"""`enum ggml_type`."""
FEATURES = ("avx2", "avx_vnni", "avx512", "avx512_vbmi", "avx512_vnni", "avx512_bf16", "amx_int8", "neon", "dotprod")
_LIBRARIES = ("libggml-base.so", "libggml-cpu.so")
_CONTEXT_BYTES, _GRAPH_NODES = 1 << 16, 8
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "ggml_new_tensor_2d": (c_void_p, (c_void_p, c_int, c_int64, c_int64)),
    "ggml_mul_mat": (c_void_p, (c_void_p, c_void_p, c_void_p)),
    "ggml_new_graph_custom": (c_void_p, (c_void_p, c_size_t, c_bool)),
    "ggml_build_forward_expand": (None, (c_void_p, c_void_p)),
    "ggml_free": (None, (c_void_p,)),
    "ggml_row_size": (c_size_t, (c_int, c_int64)),
    "ggml_quantize_chunk": (c_size_t, (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p)),
    "ggml_version": (c_char_p, ()),
    "ggml_backend_cpu_init": (c_void_p, ()),
    "ggml_backend_cpu_set_n_threads": (None, (c_void_p, c_int)),
    "ggml_backend_cpu_reg": (c_void_p, ()),
    "ggml_backend_cpu_buffer_type": (c_void_p, ()),
    "ggml_backend_get_device": (c_void_p, (c_void_p,)),
    "ggml_backend_reg_get_proc_address": (c_void_p, (c_void_p, c_char_p)),
    "ggml_backend_alloc_ctx_tensors_from_buft": (c_void_p, (c_void_p, c_void_p)),
    "ggml_backend_buffer_free": (None, (c_void_p,)),
    "ggml_backend_tensor_set": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_tensor_get": (None, (c_void_p, c_void_p, c_size_t, c_size_t)),
    "ggml_backend_graph_compute": (c_int, (c_void_p, c_void_p)),
} | {f"ggml_cpu_has_{name}": (c_int, ()) for name in FEATURES}


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


def find() -> Path | str:
    """The folder with libggml-base.so and libggml-cpu.so, or why there is none.

    $MOTE_BENCH_GGML, or what llama-cpp-python brought along.
    """
    named = os.environ.get(VARIABLE)
    package = find_spec("llama_cpp")
    places = [Path(named)] if named else [Path(package.origin).parent / "lib"] if package and package.origin else []
    folders = [folder / below for folder in places for below in ("", "src", "lib", "bin")]
    found = [folder for folder in folders if all((folder / name).exists() for name in _LIBRARIES)]
    asked = f"{VARIABLE}={named}" if named else f"{VARIABLE} is not set, llama_cpp is not installed"
    return found[0] if found else f"no {' and '.join(_LIBRARIES)}: {asked}"


class Library:
    """The functions of ggml, and a CPU backend with one thread."""

    def __init__(self, folder: Path) -> None:
        self._parts = [ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL) for name in _LIBRARIES]
        self._silence = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)(lambda level, text, data: None)
        self._function("ggml_log_set", None, (c_void_p, c_void_p))(self._silence, None)
        self.init = self._function("ggml_init", c_void_p, (_InitParams,))
        self.call = {name: self._function(name, *signature) for name, signature in _SIGNATURES.items()}
        self.backend = self.call["ggml_backend_cpu_init"]()
        self.call["ggml_backend_cpu_set_n_threads"](self.backend, 1)
        self.plain = self.call["ggml_backend_cpu_buffer_type"]()

    def _function(self, name: str, result: Any, arguments: tuple[Any, ...]) -> Any:
        function = getattr(next(part for part in self._parts if hasattr(part, name)), name)
        function.restype, function.argtypes = result, arguments
        return function

    @property
    def features(self) -> list[str]:
        """Instruction sets that the library was built for."""
        return [name for name in FEATURES if self.call[f"ggml_cpu_has_{name}"]()]

    @property
    def version(self) -> str:
        """Of ggml, as it tells it."""
        text: bytes = self.call["ggml_version"]()
        return text.decode()

    def context(self) -> int:
        """Room for the descriptions of a few tensors and a graph; their numbers lie in buffers."""
        made: int = self.init(_InitParams(_CONTEXT_BYTES, None, True))
        return made

    def buffer_types(self) -> dict[str, int]:
        """Where weights can lie: as they are stored, and rearranged by the first of the backend's other kinds."""
        types = {"": self.plain}
        registry = self.call["ggml_backend_cpu_reg"]()
        address = self.call["ggml_backend_reg_get_proc_address"](registry, b"ggml_backend_dev_get_extra_bufts")
        if address:
            listed = ctypes.CFUNCTYPE(POINTER(c_void_p), c_void_p)(address)
            first = listed(self.call["ggml_backend_get_device"](self.backend))[0]
            types |= {" repacked": first} if first else {}
        return types


@cache
def library(folder: Path) -> Library:
    """Loaded once."""
    return Library(folder)


class _Room:
    """A context and the buffer of its tensors, given back when nobody refers to it any more."""

    def __init__(self, ggml: Library) -> None:
        self._call, self.context, self._buffer = ggml.call, ggml.context(), None

    def allocate(self, place: int) -> None:
        self._buffer = self._call["ggml_backend_alloc_ctx_tensors_from_buft"](self.context, place)

    def __del__(self) -> None:
        if self._buffer is not None:
            self._call["ggml_backend_buffer_free"](self._buffer)
        self._call["ggml_free"](self.context)


class Weight:
    """A weight [out, in] as a ggml tensor of one of `TYPES`, from its bytes (see `quantized`)."""

    def __init__(self, ggml: Library, kind: str, shape: tuple[int, int], packed: Tensor, place: int) -> None:
        self._ggml, self.shape, self._room = ggml, shape, _Room(ggml)
        self._tensor = ggml.call["ggml_new_tensor_2d"](self._room.context, TYPES[kind], shape[1], shape[0])
        self._room.allocate(place)
        ggml.call["ggml_backend_tensor_set"](self._tensor, packed.data_ptr(), 0, packed.numel())

    def prepared(self, x: Tensor) -> tuple[Callable[[], Any], Callable[[], Tensor]]:
        """The product with x float32 [tokens, in]: what computes it, and what fetches it afterwards."""
        call, room = self._ggml.call, _Room(self._ggml)
        source = call["ggml_new_tensor_2d"](room.context, TYPES["F32"], self.shape[1], len(x))
        product = call["ggml_mul_mat"](room.context, self._tensor, source)
        graph = call["ggml_new_graph_custom"](room.context, _GRAPH_NODES, False)
        call["ggml_build_forward_expand"](graph, product)
        room.allocate(self._ggml.plain)
        call["ggml_backend_tensor_set"](source, x.data_ptr(), 0, x.nbytes)

        def compute(owners: Any = (self, room)) -> Any:
            return call["ggml_backend_graph_compute"](self._ggml.backend, graph)

        def fetch(owners: Any = (self, room)) -> Tensor:
            out = torch.empty(len(x), self.shape[0])
            call["ggml_backend_tensor_get"](product, out.data_ptr(), 0, out.nbytes)
            return out

        return compute, fetch


def quantized(ggml: Library, kind: str, weight: Tensor) -> Tensor:
    """The bytes of a float32 weight [out, in] in a type of ggml."""
    rows, columns = weight.shape
    packed = torch.empty(rows * ggml.call["ggml_row_size"](TYPES[kind], columns), dtype=torch.uint8)
    ggml.call["ggml_quantize_chunk"](TYPES[kind], weight.data_ptr(), packed.data_ptr(), 0, rows, columns, None)
    return packed
