"""Divergence and agreement of two models, against sums by hand."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mote_quant.data.source import IGNORED, Source
from mote_quant.errors import DataError, ModelError
from mote_quant.evaluate.compare import compare
from tests import pico
from tests.sources import source_for


class Says(nn.Module):
    """The same distribution after every token."""

    def __init__(self, *probabilities):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, input_ids, **kwargs):
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, -1))


def source(labels):
    ids = torch.zeros(1, len(labels), dtype=torch.long)

    def collate(chosen):
        return {"input_ids": ids.expand(len(chosen), -1), "labels": torch.tensor([labels] * len(chosen))}

    return Source("known", "known", [], [], [{}] * 3, collate, "text")


def test_the_divergence_is_from_the_reference_and_counts_labelled_tokens_only():
    found = compare(Says(0.25, 0.75), Says(0.5, 0.5), source([IGNORED, 0, IGNORED, 1]), batch_size=2)
    assert found["kl"] == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75), rel=1e-6)


def test_agreement_is_the_share_of_equal_first_choices():
    class Alternating(Says):
        def forward(self, input_ids, **kwargs):
            there, back = self.logits, self.logits.flip(0)
            return SimpleNamespace(logits=torch.stack([there, back, back, there]).expand(len(input_ids), -1, -1))

    found = compare(Alternating(0.9, 0.1), Says(0.8, 0.2), source([0, 0, 0, 0]))
    assert found["agreement"] == pytest.approx(1 / 3)


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_a_model_is_like_itself_whatever_the_batches_and_unlike_another(family):
    one, other = pico.PICO[family](), pico.PICO[family](seed=1)
    data = source_for(one)
    itself = compare(one, one, data)
    assert itself == {"kl": pytest.approx(0, abs=1e-6), "agreement": 1.0}
    apart = compare(other, one, data, batch_size=4)
    assert apart["kl"] > 0.01
    assert compare(other, one, data, batch_size=1)["kl"] == pytest.approx(apart["kl"], rel=1e-5)
    assert compare(other, one, data, limit=2)["kl"] != pytest.approx(apart["kl"], rel=1e-5)


def test_modes_are_put_back_module_by_module():
    one, other = pico.PICO["llama"]().train(), pico.PICO["llama"](seed=1)
    one.model.layers[0].eval()
    compare(one, other, source_for(one))
    assert one.training
    assert one.model.layers[1].training
    assert not one.model.layers[0].training
    assert not other.training


def test_bad_requests():
    with pytest.raises(ModelError, match="3 and 2 tokens"):
        compare(Says(0.2, 0.3, 0.5), Says(0.5, 0.5), source([0, 0]))
    with pytest.raises(DataError, match="nothing in its test split"):
        compare(Says(0.5, 0.5), Says(0.5, 0.5), source([IGNORED, IGNORED]))
