"""Tokens spared their routed experts: those of which a layer's router is least sure, found by calibration.

After the dynamic part of MC (arXiv 2410.06270) and MC# (arXiv 2510.10962). Beside a shared expert, a token whose best
expert has a probability below the layer's threshold takes the shared expert alone. Without one, a token whose second
probability is below threshold times its first takes the first expert alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mote_quant.errors import CalibrationError, ModelError
from mote_quant.moe.block import MoteBlock
from mote_quant.moe.router import Choice, confidence

Batch = Mapping[str, Any]
# What earlier layers skip moves what later ones see: thresholds are found, and found again while they are in force.
_PASSES = 2


def check_skippable(model: nn.Module) -> dict[str, MoteBlock]:
    """The mixture layers by path; ModelError without any, or for one that has nothing left for a skipped token."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoteBlock)}
    if not layers:
        raise ModelError("skip_rate skips experts of up-cycled mixtures, and this model has none: leave skip_rate out")
    for path, block in layers.items():
        if not block.layout.shared and block.layout.top_k == 1:
            raise ModelError(
                f"skip_rate would leave tokens of {path} without any expert: it has no shared one and sends a token to "
                "one only; leave skip_rate out, or up-cycle with shared: keep or with top_k: 2"
            )
    return layers


@torch.no_grad()
def skip_experts(model: nn.Module, batches: Sequence[Batch], held_out: Sequence[Batch], rate: float) -> dict[str, Any]:
    """Set each layer's threshold so that the share `rate` of the calibration tokens is skipped from now on.

    Returns notes: by layer the threshold and the rates reached on `batches` and on `held_out` (None without tokens).
    Raises ModelError as `check_skippable`, CalibrationError without batches. The model must be in eval mode.
    """
    layers = check_skippable(model)
    if not batches:
        raise CalibrationError("skip_rate needs calibration tokens to find its thresholds: give quantize.calibration")
    for _ in range(_PASSES):
        for path, values in _confidences(model, layers, batches).items():
            block = layers[path]
            block.layout = replace(block.layout, skip_below=_threshold(values, rate))
    rows = {
        path: {"threshold": block.layout.skip_below, "calibration": ours, "held_out": theirs}
        for (path, block), ours, theirs in zip(
            layers.items(), _rates(model, layers, batches), _rates(model, layers, held_out), strict=True
        )
    }
    return {"rate": rate, "layers": rows}


def _threshold(values: Tensor, rate: float) -> float:
    """The value below which the share `rate` of the values lies, or a little less: never more."""
    return float(values.sort().values[int(rate * len(values))])


def _rates(model: nn.Module, layers: Mapping[str, MoteBlock], batches: Sequence[Batch]) -> list[float | None]:
    """The share of tokens that each layer skips; None without tokens."""
    found = _confidences(model, layers, batches)
    return [
        float((found[path] < block.layout.skip_below).double().mean()) if path in found else None
        for path, block in layers.items()
    ]


def _confidences(model: nn.Module, layers: Mapping[str, MoteBlock], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """Per layer how sure its router is of each token, padding left out: float32 [tokens]."""
    found: dict[str, list[Tensor]] = {}
    for batch in batches:
        mask = batch.get("attention_mask")
        with _watching(layers, found, None if mask is None else mask.flatten().bool()):
            model(**batch, use_cache=False)
    return {path: torch.cat(values) for path, values in found.items()}


@contextmanager
def _watching(layers: Mapping[str, MoteBlock], found: dict[str, list[Tensor]], mask: Tensor | None) -> Iterator[None]:
    def hook(path: str, shared: bool) -> Any:
        def take(module: nn.Module, args: Any, choice: Choice) -> None:
            sure = confidence(choice, shared)
            whole = mask is None or mask.shape != sure.shape
            found.setdefault(path, []).append(sure if whole else sure[mask.to(sure.device)])  # type: ignore[union-attr]

        return take

    handles = [block.gate.register_forward_hook(hook(path, block.layout.shared)) for path, block in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
