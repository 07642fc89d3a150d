"""Question answering: greedy generation after the prompt, compared with the true answer token by token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.data.source import IGNORED, Collate, Sample
from mote_quant.evaluate.language import runs, summed_loss, to_device

_PER_TOKEN = ("input_ids", "attention_mask", "labels", "mm_token_type_ids", "token_type_ids")


def measure(model: nn.Module, collate: Collate, samples: Sequence[Sample], batch_size: int) -> dict[str, float]:
    """`accuracy` (share of exactly right answers) and `loss` (nats a token of the true answers)."""
    right, nats, tokens = 0, 0.0, 0
    for run in runs(samples, batch_size):
        batch = to_device(collate(run), model)
        right += sum(_right(model, batch))
        batch_nats, batch_tokens = summed_loss(model, batch)
        nats, tokens = nats + batch_nats, tokens + batch_tokens
    return {"accuracy": right / len(samples), "loss": nats / max(tokens, 1)}


def accuracy_by_kind(
    model: nn.Module, collate: Collate, samples: Sequence[Sample], batch_size: int = 32
) -> dict[str, float]:
    """Accuracy for each `kind` of question."""
    verdicts: dict[str, list[bool]] = defaultdict(list)
    with torch.no_grad():
        for run in runs(samples, batch_size):
            for sample, right in zip(run, _right(model, to_device(collate(run), model)), strict=True):
                verdicts[sample["kind"]].append(right)
    return {kind: sum(rights) / len(rights) for kind, rights in sorted(verdicts.items())}


def _right(model: nn.Module, batch: dict[str, Tensor]) -> list[bool]:
    """For each row, whether greedy decoding after the prompt gives the labelled tokens."""
    labels = batch["labels"]
    answers = [row[row != IGNORED] for row in labels]
    prompts = _left_padded(batch, [int((row != IGNORED).nonzero()[0]) for row in labels])
    longest = max(len(answer) for answer in answers)
    generated = cast(Any, model).generate(**prompts, max_new_tokens=longest, do_sample=False)
    new = generated[:, prompts["input_ids"].shape[1] :]
    return [bool(torch.equal(row[: len(answer)], answer)) for row, answer in zip(new, answers, strict=True)]


def _left_padded(batch: dict[str, Tensor], lengths: list[int]) -> dict[str, Tensor]:
    """The prompts of a right-padded batch, padded on the left as generation needs them; images as they are."""
    prompts = {name: value for name, value in batch.items() if name not in _PER_TOKEN}
    for name, value in _token_inputs(batch):
        rows = [row[:length] for row, length in zip(value, lengths, strict=True)]
        padded = value.new_zeros(len(rows), max(lengths))
        for index, row in enumerate(rows):
            padded[index, max(lengths) - len(row) :] = row
        prompts[name] = padded
    return prompts


def _token_inputs(batch: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    return ((name, batch[name]) for name in _PER_TOKEN if name in batch and name != "labels")
