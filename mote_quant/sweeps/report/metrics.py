"""What a number of a sweep is: its unit, how many digits it deserves, and which way is better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mote_quant.memory.units import human_bytes

_MOST_DIGITS = 6


@dataclass(frozen=True)
class Kind:
    """How one sort of number is written. `scale` turns the stored value into `unit`; differences are in `apart`."""

    unit: str = ""
    apart: str = ""
    scale: float = 1.0
    digits: int = 3
    higher_is_better: bool = True

    def value(self, value: float) -> str:
        """The number with its unit, as `82.1 %`."""
        if self.unit == "bytes":
            return human_bytes(round(value))
        return f"{self.number(value)} {self.unit}".rstrip()

    def number(self, value: float, digits: int | None = None) -> str:
        """The number alone."""
        if self.unit == "bytes":
            return human_bytes(round(value))
        return f"{self.scale * value:,.{self.digits if digits is None else digits}f}"

    def digits_for(self, value: float) -> int:
        """Digits after the point: the usual ones, more where they would show a difference as nothing."""
        digits = self.digits
        while value and digits < _MOST_DIGITS and round(abs(self.scale * value), digits) == 0:
            digits += 1
        return digits


_SHARE = Kind("%", "points", 100.0, 1)
_NATS = Kind("nats", "nats", 1.0, 3, higher_is_better=False)
_LOWER = Kind(digits=3, higher_is_better=False)
_SPEED = Kind("tokens/s", "tokens/s", 1.0, 0)
_KINDS = {
    **dict.fromkeys(("accuracy", "acc", "acc_norm", "exact_match", "em", "f1", "agreement"), _SHARE),
    **dict.fromkeys(("agreement_dense", "agreement_unquantized"), _SHARE),
    **dict.fromkeys(("loss", "unquantized_loss", "kl_dense", "kl_unquantized"), _NATS),
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity"), _LOWER),
    "bits_per_byte": Kind("", "bits", 1.0, 3, higher_is_better=False),
    "train_seconds": Kind("s", "s", 1.0, 1, higher_is_better=False),
    "peak_resident_bytes": Kind("bytes", "bytes", 1.0, 0, higher_is_better=False),
    **dict.fromkeys(("prompt_tokens_per_s", "decode_tokens_per_s"), _SPEED),
    **dict.fromkeys(("tokens_trained", "calibration_tokens_min"), Kind(digits=0)),
    "calibration_tokens_mean": Kind(digits=1),
}


def kind_of(key: str, sweep: Mapping[str, Any]) -> Kind:
    """The kind of metric `key` (`accuracy`, `piqa.acc`, `piqa.acc,none`); the score's direction is the sweep's."""
    kind = _KINDS.get(key.rsplit(".", 1)[-1].split(",")[0], Kind())
    return replace(kind, higher_is_better=bool(sweep["higher_is_better"])) if key == sweep["score"] else kind


def direction(key: str) -> bool | None:
    """Whether a larger value of metric `key` is better; None for a metric nobody here knows."""
    kind = _KINDS.get(key.rsplit(".", 1)[-1].split(",")[0])
    return None if kind is None else kind.higher_is_better


_LABELS = {
    "bits_per_byte": "bits per byte",
    "unquantized_loss": "loss before quantizing",
    "kl_dense": "KL to dense",
    "kl_unquantized": "KL to unquantized",
    "agreement_dense": "agrees with dense",
    "agreement_unquantized": "agrees with unquantized",
    "load_min": "least load",
    "load_max": "most load",
    "entropy": "routing entropy (1: undecided)",
    "train_seconds": "training",
    "tokens_trained": "tokens trained",
    "prompt_tokens_per_s": "prompt",
    "decode_tokens_per_s": "decode",
    "peak_resident_bytes": "peak memory",
    "model_stored_bytes": "whole model, stored",
    "model_resident_bytes": "whole model, resident",
    "calibration_tokens_min": "fewest calibration tokens",
    "calibration_tokens_mean": "mean calibration tokens",
}


def label(key: str) -> str:
    """A key as words."""
    return _LABELS.get(key, key.replace("_", " "))


def heading(key: str, sweep: Mapping[str, Any]) -> str:
    """A key as words with its unit: `loss (nats)`."""
    unit = kind_of(key, sweep).unit
    return f"{label(key)} ({unit})" if unit and unit != "bytes" else label(key)
