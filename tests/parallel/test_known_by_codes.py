"""Which experts go through backward without their latent weights: shown by taking those away after forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mote_quant.hf.latents import make_latent
from mote_quant.parallel import codes_suffice, known_by_codes
from mote_quant.recipe.schema import Train
from tests import pico
from tests.mixtures import TRAIN, upcycled

CODED: dict[str, dict[str, Any]] = {
    "ternary": {"format": "ternary"},
    "ternary by channel": {"format": "ternary", "granularity": "channel", "activations": "none"},
    "binary by group": {"format": "binary", "granularity": "group", "group_size": 16},
    "int4": {"format": "int4", "group_size": 16, "method": "qat"},
}


def trained(family: str, bits: dict[str, Any] | None, **upcycle: Any) -> nn.Module:
    """As a train step has it."""
    model = pico.PICO[family]()
    make_latent(model, upcycled(model, bits, **upcycle).formats)
    return model.train()


def gradients(model: nn.Module, gone: list[nn.Parameter]) -> dict[str, Tensor]:
    """After a forward, and a backward in which `gone` have no values."""
    model.zero_grad()
    torch.manual_seed(0)
    loss = model(**pico.inputs(model)).loss
    for parameter in gone:
        parameter.untyped_storage().resize_(0)
    loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("kind", CODED)
def test_backward_looks_at_no_weight(family: str, kind: str) -> None:
    model = trained(family, {"routed": CODED[kind]})
    experts = list(known_by_codes(model))
    assert len(experts) == 2
    expected = gradients(model, [])
    found = gradients(model, [parameter for each in experts for parameter in each.parameters()])
    assert found.keys() == expected.keys()
    assert any("experts" in name for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("bits", "upcycle"),
    [({"routed": {"format": "ternary", "scales": "learned"}}, {}), (None, {}), (None, {"lora_rank": 4})],
    ids=["learned scales", "full precision", "low rank"],
)
def test_others_are_looked_at(bits: dict[str, Any] | None, upcycle: dict[str, Any]) -> None:
    assert not list(known_by_codes(trained("llama", bits, **upcycle)))


@pytest.mark.parametrize(
    ("settings", "suffice"),
    [
        ({}, True),
        ({"gradient_accumulation": 2, "precision": "bfloat16"}, True),
        ({"gradient_checkpointing": True}, False),
        ({"ternary_ramp": 0.1}, False),
        ({"compile": True}, False),
        ({"fake_quantize": False}, False),
    ],
)
def test_what_trains_from_codes(settings: dict[str, Any], suffice: bool) -> None:
    assert codes_suffice(Train(**TRAIN, **settings)) is suffice
