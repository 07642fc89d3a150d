"""Metrics against models whose answers are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mote_quant.data.source import IGNORED, Source
from mote_quant.errors import DataError
from mote_quant.evaluate import evaluate
from mote_quant.evaluate.answers import accuracy_by_kind
from mote_quant.evaluate.pareto import front
from tests import pico

VOCABULARY = 7


class Uniform(nn.Module):
    """Every next token is equally likely."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, input_ids, **kwargs):
        return SimpleNamespace(logits=torch.zeros(*input_ids.shape, VOCABULARY))


def text_source(rows, size=10):
    samples = [{"input_ids": torch.tensor(row), "bytes": size} for row in rows]

    def collate(chosen):
        ids = torch.stack([sample["input_ids"] for sample in chosen])
        return {"input_ids": ids, "labels": ids.clone()}

    return Source("known", "known", samples, samples, samples, collate, "text")


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    scores = evaluate(Uniform(), text_source([[1, 2, 3, 4, 5]] * 3), batch_size=2)
    assert scores["loss"] == pytest.approx(math.log(VOCABULARY))
    assert scores["perplexity"] == pytest.approx(VOCABULARY)
    assert scores["tokens"] == 12
    assert scores["bits_per_byte"] == pytest.approx(4 * math.log2(VOCABULARY) / 10)


def test_loss_equals_the_models_own_and_the_mode_is_restored():
    model = pico.PICO["llama"]().train()
    ids = torch.randint(10, 90, (4, 9), generator=torch.Generator().manual_seed(0))
    source = text_source(ids.tolist())
    expected = model.eval()(**source.collate(source.test)).loss
    model.train()
    assert evaluate(model, source, batch_size=3)["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert model.training


def test_an_empty_split_is_refused():
    with pytest.raises(DataError, match="validation"):
        evaluate(Uniform(), Source("x", "x", [1], [], [], lambda s: {}, "text"), split="validation")


def question_source(model, prompts):
    """Questions whose true answers are what `model` greedily says, except the last one's."""
    samples = []
    for index, prompt in enumerate(prompts):
        ids = torch.tensor([prompt])
        said = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        answer = said[0, len(prompt) :].tolist()
        if index == len(prompts) - 1:
            answer[1] = (answer[1] + 1) % pico.VOCABULARY
        samples.append({"prompt": prompt, "answer": answer, "kind": "last" if index == len(prompts) - 1 else "other"})

    def collate(chosen):
        longest = max(len(s["prompt"]) + len(s["answer"]) for s in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
        for row, s in enumerate(chosen):
            size = len(s["prompt"]) + len(s["answer"])
            ids[row, :size] = torch.tensor(s["prompt"] + s["answer"])
            mask[row, :size] = 1
            labels[row, len(s["prompt"]) : size] = torch.tensor(s["answer"])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    return Source("asked", "asked", samples, samples, samples, collate, "vqa")


def test_accuracy_counts_exactly_the_right_answers_over_ragged_prompts():
    model = pico.PICO["llama"]()
    model.generation_config.eos_token_id = None
    source = question_source(model, [[11, 12], [13, 14, 15, 16, 17], [18, 19, 20], [21, 22, 23, 24]])
    assert evaluate(model, source, batch_size=4)["accuracy"] == 0.75
    assert evaluate(model, source, batch_size=1)["accuracy"] == 0.75
    assert accuracy_by_kind(model, source.collate, source.test) == {"last": 0.0, "other": 1.0}


def test_the_front_keeps_what_nothing_beats():
    points = [(4, 0.9), (2, 0.8), (3, 0.7), (2, 0.6), (5, 0.9), (1, 0.1)]
    assert front(points, lambda p: p[0], lambda p: p[1]) == [(1, 0.1), (2, 0.8), (4, 0.9)]
