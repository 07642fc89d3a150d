"""What is measured of a training, against the same by hand."""

from __future__ import annotations

import pytest
import torch

from mote_quant.moe import blocks
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.bits import BinaryBits, IntegerBits, TernaryBits
from mote_quant.watching.alarm import PATIENCE, dead_experts
from mote_quant.watching.codes import CodeMeter
from mote_quant.watching.gradients import before_clipping, norms_by_role
from mote_quant.watching.places import layer_of
from mote_quant.watching.routing import RoutingMeter
from mote_quant.watching.speed import Speedometer
from tests import pico
from tests.mixtures import TERNARY, mixture

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

SPECS = {
    "ternary": TernaryBits(format="ternary"),
    "by channel": TernaryBits(format="ternary", granularity="channel"),
    "learned": TernaryBits(format="ternary", scales="learned"),
    "binary": BinaryBits(format="binary"),
    "int4": IntegerBits(format="int4", group_size=-1, method="qat"),
}


@pytest.mark.parametrize("columns", [16, 13])
@pytest.mark.parametrize("spec", SPECS)
def test_zeros_and_flips_are_those_of_the_codes(spec, columns):
    torch.manual_seed(0)
    layers = torch.nn.ModuleDict({name: QatLinear(columns, 7, SPECS[spec]) for name in ("a", "b")})
    meter = CodeMeter(layers, {"a": ("one", "both"), "b": ("both",)})
    before = {name: layer.codes().codes.clone() for name, layer in layers.items()}
    assert {shares["flips"] for shares in meter.take().values()} == {0.0}
    with torch.no_grad():
        layers["a"].weight += 0.3 * torch.randn_like(layers["a"].weight)
        layers["b"].weight[0] *= -1
    after = {name: layer.codes().codes for name, layer in layers.items()}
    found = meter.take()
    assert (after["a"] != before["a"]).any()
    assert found["one"]["flips"] == pytest.approx((after["a"] != before["a"]).float().mean().item(), abs=1e-7)
    changed = sum((after[name] != before[name]).sum().item() for name in after)
    assert found["both"]["flips"] == pytest.approx(changed / (2 * 7 * columns), abs=1e-7)
    if "ternary" in SPECS[spec].format:
        assert found["one"]["zeros"] == pytest.approx((after["a"] == 0).float().mean().item(), abs=1e-6)
    else:
        assert "zeros" not in found["one"]


def seen(model, seeds, **more) -> dict:
    meter = RoutingMeter(model)
    meter.start()
    for seed in seeds:
        model(**pico.inputs(model, seed=seed), **more).loss.backward()
    meter.stop()
    return meter.take()


def test_routing_is_the_mean_over_the_stretch():
    model = mixture(TERNARY, router_std=1.0).train()
    each, asked = [], []
    for seed in (0, 1, 2):
        model(**pico.inputs(model, seed=seed))
        each.append({layer_of(name): block.routing for name, block in blocks(model).items()})
        asked.append({layer_of(name): block._last.probabilities.mean(0) for name, block in blocks(model).items()})
    found = seen(model, (0, 1, 2))
    assert list(found) == ["model.layers.0", "model.layers.1"]
    for name, routing in found.items():
        load = torch.stack([routings[name].load for routings in each]).mean(0)
        assert routing["load"] == pytest.approx(load.tolist(), abs=1e-5)
        assert sum(routing["load"]) == pytest.approx(1.0, abs=1e-4)
        probabilities = torch.stack([found_p[name] for found_p in asked]).mean(0)
        assert routing["balance"] == pytest.approx(float(len(load) * (load * probabilities).sum()), abs=1e-4)
        entropy = sum(float(routings[name].entropy) for routings in each) / 3
        assert routing["entropy"] == pytest.approx(entropy, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_are_computed_again_count_once_and_evaluation_not_at_all(reentrant):
    model = mixture(TERNARY).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    meter, speed = RoutingMeter(model), Speedometer(model, clock := iter([0.0, 2.0, 2.0]).__next__)
    meter.start()
    speed.start(0)
    given = pico.inputs(model)
    model(**given, use_cache=False).loss.backward()
    model.eval()(**given)
    sums = [tally.sums[-1].item() for tally in meter._tallies.values()]
    assert sums == [given["input_ids"].numel()] * 2
    assert speed.take(1, 5) == {"tokens_per_second": given["input_ids"].numel() / 2, "seconds_left": 8.0}
    assert callable(clock)
    meter.stop()
    speed.stop()
    assert meter.take()
    model.train()(**given, use_cache=False)
    assert meter.take() == {}
    assert not any(module._forward_hooks for name, module in model.named_modules() if name.endswith("gate"))


def test_norms_by_role_are_taken_back_to_before_clipping():
    first, second, none = (torch.nn.Parameter(torch.zeros(3)) for _ in range(3))
    first.grad, second.grad = torch.tensor([3.0, 0.0, 0.0]), torch.tensor([0.0, 4.0, 0.0])
    norms = norms_by_role({"routed": [first], "router": [second], "norm": [none]})
    assert norms == {"routed": 3.0, "router": 4.0}
    assert before_clipping(norms, 10.0) == {"routed": 6.0, "router": 8.0}
    assert before_clipping(norms, None) == norms
    assert before_clipping({}, 1.0) == {}


def test_an_expert_is_dead_when_it_starved_in_all_of_the_last_stretches():
    starved, fed = {"a": {"load": [0.01, 0.99]}}, {"a": {"load": [0.03, 0.97]}}
    assert dead_experts([starved] * (PATIENCE - 1)) == []
    assert dead_experts([starved] * PATIENCE) == [("a", 0)]
    assert dead_experts([fed] + [starved] * PATIENCE) == [("a", 0)]
    assert dead_experts([starved, fed] + [starved] * (PATIENCE - 1)) == []
    assert dead_experts([{}] + [starved] * (PATIENCE - 1)) == []


@pytest.mark.parametrize(
    ("path", "layer"),
    [
        ("model.layers.3.mlp.experts.0.up_proj", "model.layers.3"),
        ("transformer.h.11.mlp", "transformer.h.11"),
        ("model.layers.12", "model.layers.12"),
        ("lm_head", "lm_head"),
    ],
)
def test_the_layer_of_a_path(path, layer):
    assert layer_of(path) == layer
