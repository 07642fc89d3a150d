"""Router statistics over a stretch of data, against routers whose choices are known."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

import mote_quant
from mote_quant import moe
from mote_quant.evaluate.routing import routing
from tests import pico
from tests.sources import source_for

RECIPE = {"name": "tiny", "seed": 0, "pipeline": [{"upcycle": {"experts": 4, "top_k": 2}}]}


@pytest.fixture(scope="module")
def model():
    return mote_quant.apply(RECIPE, pico.PICO["llama"]())


def test_a_model_without_mixtures_has_no_routing():
    dense = pico.PICO["llama"]()
    assert routing(dense, source_for(dense)) == {}


def test_a_router_that_cannot_decide(model):
    for block in moe.blocks(model).values():
        torch.nn.init.zeros_(block.gate.weight)
    found = routing(model, source_for(model))
    assert found["entropy"] == pytest.approx(1.0)
    assert found["balance"] == pytest.approx(1.0)


def test_the_sums_are_those_of_all_tokens_whatever_the_batches(model):
    for index, block in enumerate(moe.blocks(model).values()):
        torch.nn.init.normal_(block.gate.weight, generator=torch.Generator().manual_seed(index))
    data = source_for(model)
    whole = routing(model, data, batch_size=4)
    last = [block.routing for block in moe.blocks(model).values()]
    assert whole["load_min"] == pytest.approx(sum(float(r.load.min()) for r in last) / len(last))
    assert whole["load_max"] == pytest.approx(sum(float(r.load.max()) for r in last) / len(last))
    assert whole["balance"] == pytest.approx(sum(float(r.balance) for r in last) / len(last), rel=1e-5)
    assert whole["entropy"] == pytest.approx(sum(float(r.entropy) for r in last) / len(last) / math.log(4), rel=1e-5)
    assert routing(model, data, batch_size=3) == pytest.approx(whole, rel=1e-5)
    assert whole["load_max"] > whole["load_min"]


def test_padding_is_not_counted(model):
    data = source_for(model)

    def padded(samples):
        batch = data.collate(samples)
        zeros = torch.zeros_like(batch["input_ids"])
        ends = {"input_ids": zeros, "attention_mask": zeros, "labels": zeros - 100}
        return {name: torch.cat([value, ends[name]], dim=1) for name, value in batch.items()}

    assert routing(model, dataclasses.replace(data, collate=padded)) == pytest.approx(routing(model, data), rel=1e-4)


def test_nothing_is_left_behind(model):
    model.train()
    routing(model, source_for(model))
    assert model.training
    assert not any(block.gate._forward_hooks for block in moe.blocks(model).values())
