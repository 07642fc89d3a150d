"""Rows of several samples as model inputs, by one of two ways to keep the samples apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mote_quant.data.source import IGNORED, Collate, Sample

Form = Literal["positions", "mask"]
"""By positions that begin again, from which the model makes its own mask; or by a mask [rows, 1, tokens, tokens]."""


@dataclass(frozen=True)
class PackedRows:
    """Collates rows, each a list of samples that `collate` takes."""

    collate: Collate
    form: Form

    def __call__(self, rows: Sequence[Sequence[Sample]]) -> dict[str, Tensor]:
        """`input_ids`, `position_ids`, `labels` [rows, tokens], padded on the right, and a mask in that form."""
        batches = [[self.collate([sample]) for sample in row] for row in rows]
        ids = [[_real(batch, "input_ids") for batch in row] for row in batches]
        labels = [torch.cat([_labels(batch) for batch in row]) for row in batches]
        positions = [torch.cat([torch.arange(len(sample)) for sample in row]) for row in ids]
        joined = {
            "input_ids": pad_sequence([torch.cat(row) for row in ids], batch_first=True),
            "position_ids": _padded_positions(positions),
            "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        }
        if self.form == "positions":
            return joined
        numbers = [torch.cat([torch.full_like(sample, n) for n, sample in enumerate(row)]) for row in ids]
        return joined | {"attention_mask": _apart(pad_sequence(numbers, batch_first=True, padding_value=-1))}


def _real(batch: dict[str, Tensor], name: str) -> Tensor:
    """A value by token of a batch of one sample, without its padding."""
    return batch[name][0][batch["attention_mask"][0].bool()]


def _labels(batch: dict[str, Tensor]) -> Tensor:
    """Nothing predicts the first token of a sample: what stands before it belongs to another."""
    labels = _real(batch, "labels").clone()
    labels[0] = IGNORED
    return labels


def _padded_positions(rows: Sequence[Tensor]) -> Tensor:
    """Padding is a sample of its own: its positions begin again."""
    longest = max(len(row) for row in rows)
    return torch.stack([torch.cat([row, torch.arange(longest - len(row))]) for row in rows])


def _apart(numbers: Tensor) -> Tensor:
    """What is added to attention scores [rows, 1, tokens, tokens]; `numbers` say to which sample a token belongs."""
    tokens = numbers.shape[1]
    seen = (numbers[:, :, None] == numbers[:, None, :]) & torch.ones(tokens, tokens, dtype=torch.bool).tril()
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)[:, None]
