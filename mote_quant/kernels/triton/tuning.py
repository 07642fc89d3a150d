"""Which tile sizes are tried, and for what they are tried again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether kernels run under Triton's interpreter: set by TRITON_INTERPRET=1 before triton is imported."""
DECODE_TOKENS = 4
"""Up to here a kernel reads whole rows for each token; from here on tiles of tokens share what they read."""
DECODE_PAIRS = 16
"""The same for pairs of a token and one of its experts."""
_LARGEST_BUCKET = 4096
_SMALLEST_TILE = 16


def _config(warps: int, stages: int, **sizes: int) -> triton.Config:
    return triton.Config(sizes, num_warps=warps, num_stages=stages)


# The interpreter cannot tune and runs the first of each table.
TILES = (
    _config(4, 2, block_rows=32, block_tokens=16, block_bytes=32),
    _config(4, 4, block_rows=64, block_tokens=16, block_bytes=64),
    _config(4, 4, block_rows=128, block_tokens=16, block_bytes=64),
    _config(4, 3, block_rows=64, block_tokens=32, block_bytes=64),
    _config(4, 3, block_rows=64, block_tokens=64, block_bytes=64),
    _config(8, 3, block_rows=128, block_tokens=64, block_bytes=64),
    _config(8, 3, block_rows=128, block_tokens=128, block_bytes=32),
    _config(8, 3, block_rows=128, block_tokens=128, block_bytes=64),
)
RUN_TILES = (
    _config(4, 2, block_rows=32, block_tokens=16),
    _config(4, 4, block_rows=64, block_tokens=16),
    _config(4, 4, block_rows=128, block_tokens=16),
    _config(4, 3, block_rows=64, block_tokens=32),
    _config(4, 3, block_rows=64, block_tokens=64),
    _config(8, 3, block_rows=128, block_tokens=64),
    _config(8, 3, block_rows=128, block_tokens=128),
)
"""For kernels that go over a row run by run, whatever its length."""
ROWS = (
    _config(4, 2, block_rows=16, block_bytes=64),
    _config(4, 2, block_rows=16, block_bytes=128),
    _config(4, 2, block_rows=8, block_bytes=128),
    _config(4, 2, block_rows=4, block_bytes=256),
    _config(2, 2, block_rows=4, block_bytes=128),
    _config(1, 2, block_rows=4, block_bytes=64),
)


def tuned(table: Sequence[triton.Config], *key: str) -> Callable[[Any], Any]:
    """An autotuned kernel: `table` is tried for each value of the arguments named by `key`, once: disks remember.

    One of them is `bucket`, which kernels take for this alone.
    """
    configs = list(table[:1] if INTERPRETED.value else table)
    prune = {"early_config_prune": _fit}
    wrapped: Callable[[Any], Any] = triton.autotune(configs, list(key), prune_configs_by=prune, cache_results=True)
    return wrapped


def bucket(tokens: int) -> int:
    """Numbers of tokens that share a tuning: the next power of two, up to a limit."""
    return min(1 << max(tokens - 1, 0).bit_length(), _LARGEST_BUCKET)


def _fit(configs: Sequence[triton.Config], _: Mapping[str, Any], **arguments: Any) -> list[triton.Config]:
    """Kernels are launched with named arguments: their numbers of tokens are known by `bucket`."""
    tokens = max(arguments["bucket"], _SMALLEST_TILE)
    return [config for config in configs if config.kwargs.get("block_tokens", 0) <= tokens]
