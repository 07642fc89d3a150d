"""How fast a model reads and writes, and how much memory the process has had."""

from __future__ import annotations

import logging
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.errors import RequestError
from mote_quant.evaluate.mode import measured
from mote_quant.steps.upcycle.preservation import text_ids

_log = logging.getLogger(__name__)
_STATUS = Path("/proc/self/status")
_CLEAR, _PEAK_ONLY = Path("/proc/self/clear_refs"), "5"


def measure_speed(
    model: nn.Module, *, prompt_tokens: int = 128, new_tokens: int = 16, repeats: int = 3
) -> dict[str, float]:
    """`prompt_tokens_per_s` and `decode_tokens_per_s` of one sequence: medians of `repeats`, after one run to warm up.

    The prompt is text, and shorter than asked for where the model's context is; then tokens are decoded greedily, one
    by one, with the cache. RequestError where the context has no room, or nothing is asked for.
    """
    if min(prompt_tokens, new_tokens, repeats) < 1:
        raise RequestError("prompt_tokens, new_tokens and repeats must be at least 1")
    context = getattr(cast(Any, model).config.get_text_config(), "max_position_embeddings", None)
    length = prompt_tokens if context is None else min(prompt_tokens, context - new_tokens)
    if length < 1:
        raise RequestError(f"{new_tokens} new tokens leave no room for a prompt in a context of {context}")
    prompt = text_ids(model, 1, length)
    with measured(model):
        _read_and_write(model, prompt, 1)
        seconds = [_read_and_write(model, prompt, new_tokens) for _ in range(repeats)]
    read, wrote = (statistics.median(times) for times in zip(*seconds, strict=True))
    return {"prompt_tokens_per_s": length / read, "decode_tokens_per_s": new_tokens / wrote}


def _read_and_write(model: nn.Module, prompt: Tensor, new_tokens: int) -> tuple[float, float]:
    """Seconds for the prompt, and for `new_tokens` after it."""
    step = cast(Any, model)
    read, output = _timed(prompt, lambda: step(input_ids=prompt, use_cache=True))

    def write() -> None:
        last = output
        for _ in range(new_tokens):
            token = last.logits[:, -1:].argmax(-1)
            last = step(input_ids=token, past_key_values=last.past_key_values, use_cache=True)

    return read, _timed(prompt, write)[0]


def _timed(where: Tensor, work: Callable[[], Any]) -> tuple[float, Any]:
    _wait(where)
    started = time.perf_counter()
    result = work()
    _wait(where)
    return time.perf_counter() - started, result


def _wait(where: Tensor) -> None:
    """An accelerator works behind our back; a CPU does not."""
    if where.device.type != "cpu":
        torch.accelerator.synchronize(where.device)


def peak_resident_bytes() -> int:
    """The most physical memory this process has had at once, in bytes (CPU memory; no accelerator's).

    On Linux `VmHWM` of /proc/self/status: getrusage's figure, which stands in elsewhere, outlives an exec there, so
    that a small process started by a large one would report the large one.
    """
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    peak = next((line.split()[1] for line in lines if line.startswith("VmHWM:")), None)
    if peak is not None:
        return int(peak) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> None:
    """Let `peak_resident_bytes` start anew from what is held now, where the system can (Linux)."""
    try:
        _CLEAR.write_text(_PEAK_ONLY)
    except OSError:
        _log.debug("the peak of resident memory cannot be reset here")
