"""`balance_loss` where the routers are the model's own: its loss, or a word that there is none."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

import mote_quant
from mote_quant.errors import RequestError
from mote_quant.planning import plan
from mote_quant.recipe.schema import Train
from mote_quant.steps.train.balance import own_balance
from mote_quant.steps.train.selection import trainable_names
from tests import pico
from tests.mixtures import bits_of, mixture
from tests.pico_moe import PICO_MOE
from tests.sources import source_for

STEP = {"data": "pico", "steps": 2, "batch_size": 4, "learning_rate": 1e-2}


def settings(what: list[str], **more: Any) -> Train:
    return Train.model_validate(STEP | {"what": what} | more)


def loss_of(model: PreTrainedModel, config: Train) -> float:
    """The loss of one batch as a step of `config` has it."""
    with own_balance(model, config, trainable_names(model, config.what)), torch.no_grad():
        return float(model(**pico.inputs(model)).loss)


@pytest.mark.parametrize("family", ["Mixtral", "Qwen3-MoE", "GPT-OSS", "Qwen3-VL-MoE"])
def test_it_is_the_weight_of_the_models_own_loss(family: str) -> None:
    model = PICO_MOE[family]()
    before = model.config.to_dict()
    plain = loss_of(model, settings(["router"], balance_loss=0.0))
    one, half = (loss_of(model, settings(["router"], balance_loss=weight)) for weight in (1.0, 0.5))
    assert one - plain >= 1.9  # two experts to a token: 2 is uniform
    assert half - plain == pytest.approx((one - plain) / 2, rel=1e-3)
    shared = loss_of(model, settings(["router"], balance_loss=1.0, gradient_accumulation=4))
    assert shared - plain == pytest.approx((one - plain) / 4, rel=1e-3)
    assert model.config.to_dict() == before
    assert loss_of(model, settings(["router"], balance_loss=0.0)) == plain


def test_a_step_trains_by_it() -> None:
    routers = {}
    for weight in (0.0, 1.0):
        model = pico.NATIVE_MOE["mixtral"]()
        step = STEP | {"what": ["router"], "balance_loss": weight}
        mote_quant.apply({"name": "x", "pipeline": [{"train": step}]}, model, data=source_for(model))
        routers[weight] = bits_of(model.state_dict())["model.layers.0.mlp.gate.weight"]
        assert model.config.output_router_logits is False
    assert not torch.equal(routers[0.0], routers[1.0])


def test_a_router_that_is_not_trained_is_left_alone() -> None:
    model = pico.NATIVE_MOE["mixtral"]()
    assert loss_of(model, settings(["routed"], balance_loss=1.0)) == loss_of(model, settings(["routed"]))
    ours = mixture()
    assert loss_of(ours, settings(["router"], balance_loss=1.0)) == loss_of(ours, settings(["router"], balance_loss=0))


def test_a_model_without_such_a_loss_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def made(**more: Any) -> dict[str, Any]:
        return {"name": "x", "pipeline": [{"train": STEP | {"what": ["router"]} | more}]}

    model = PICO_MOE["DeepSeek-V3"]()
    with pytest.raises(RequestError, match=r"train\.balance_loss: the routers of DeepseekV3ForCausalLM are its own"):
        plan(made(balance_loss=0.1), model)
    with pytest.raises(RequestError, match=r"train\.z_loss"):
        plan(made(z_loss=0.1), pico.NATIVE_MOE["mixtral"]())
    plan(made(what=["routed"], balance_loss=0.1), model)
    with caplog.at_level(logging.INFO, logger="mote_quant.steps.train.balance"):
        mote_quant.apply(made(), model, data=source_for(model))
    assert "trained without balance_loss" in caplog.text
