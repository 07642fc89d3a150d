"""What is weighed layer kind by layer kind weighs what the full plan says, to the byte."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from mote_quant.anatomy.structure import decoder_layers
from mote_quant.errors import MoteError
from mote_quant.pipeline import apply
from mote_quant.planning import plan_on, skeleton_for
from mote_quant.recipe import load
from mote_quant.sweeps import alike
from mote_quant.sweeps.alike import Scales
from mote_quant.sweeps.load import load_sweep
from tests import pico

INT4 = {"format": "int4", "group_size": 16}
LAYERS = 5


def recipe(bits: dict[str, Any], *steps: Any) -> Any:
    return load({"name": "x", "bits": bits, "pipeline": [*steps, "quantize"]})


def mixture(layers: Any, **settings: Any) -> dict[str, Any]:
    return {"upcycle": {"layers": layers, "experts": 3, **settings}}


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many decoder layers the models had on which plans were made."""
    sizes: list[int] = []

    def plan_and_count(made: Any, skeleton: nn.Module) -> Any:
        sizes.append(len(decoder_layers(skeleton)))
        return plan_on(made, skeleton)

    monkeypatch.setattr(alike, "plan_on", plan_and_count)
    return sizes


MIXED = {"routed": "ternary", "shared": INT4, "router": "float32"}
RECIPES = {
    "dense": (recipe({"ffn": INT4, "attention": "float16"}), 1),
    "all": (recipe(MIXED, mixture("all")), 1),
    "every other": (recipe(MIXED | {"ffn": {"format": "int3", "group_size": 16}}, mixture("every_other")), 2),
    "listed": (recipe(MIXED, mixture([0, 3])), 2),
    "last": (recipe({"routed": INT4, "embedding": "float32"}, mixture([LAYERS - 1], top_k=2, shared="none")), 2),
    "by name": (recipe({"model.layers.1.mlp": INT4, "ffn": {"format": "int8"}}), LAYERS),
}


@pytest.mark.parametrize("name", RECIPES)
def test_one_layer_of_each_kind_is_planned(name: str, planned: list[int]) -> None:
    skeleton = skeleton_for(pico.PICO["qwen2"](layers=LAYERS))
    before = str(skeleton)
    made, kinds = RECIPES[name]
    assert Scales.of(skeleton).weigh(made) == plan_on(made, copy.deepcopy(skeleton)).result
    assert planned == [kinds]
    assert str(skeleton) == before


def outcome(weigh: Callable[[Any], Any], made: Any) -> Any:
    """What a recipe weighs, or the words in which it is refused."""
    try:
        return weigh(made)
    except MoteError as error:
        return str(error)


@pytest.mark.parametrize("name", ["dense", "all", "every other", "last"])
@pytest.mark.parametrize("family", pico.PICO)
def test_in_every_family(family: str, name: str) -> None:
    skeleton = skeleton_for(pico.PICO[family](layers=LAYERS, hidden=48, ffn=64))
    made = RECIPES[name][0]
    assert outcome(Scales.of(skeleton).weigh, made) == outcome(lambda made: plan_on(made, skeleton).result, made)


@pytest.mark.parametrize("family", pico.NATIVE_MOE)
def test_in_models_that_came_with_experts(family: str) -> None:
    skeleton = skeleton_for(pico.NATIVE_MOE[family](layers=3))
    made = recipe({"routed": INT4})
    assert Scales.of(skeleton).weigh(made) == plan_on(made, copy.deepcopy(skeleton)).result


@pytest.mark.parametrize("made", load_sweep("candidates").candidates, ids=lambda made: made.name)
def test_every_shipped_candidate(made: Any, planned: list[int]) -> None:
    skeleton = skeleton_for(pico.PICO["qwen2"](layers=3, hidden=128, ffn=256))
    assert Scales.of(skeleton).weigh(made.recipe) == plan_on(made.recipe, copy.deepcopy(skeleton)).result
    assert planned in ([1], [2])


def test_layers_of_different_build_count_for_themselves(planned: list[int]) -> None:
    skeleton = skeleton_for(pico.PICO["llama"](layers=LAYERS))
    odd = skeleton.get_submodule("model.layers.2.mlp")
    for name, shape in {"gate_proj": (32, 80), "up_proj": (32, 80), "down_proj": (80, 32)}.items():
        setattr(odd, name, nn.Linear(*shape, bias=False, device="meta"))
    made = RECIPES["all"][0]
    assert Scales.of(skeleton).weigh(made) == plan_on(made, copy.deepcopy(skeleton)).result
    assert planned == [2]


def test_tensors_that_layers_share_count_once(planned: list[int]) -> None:
    skeleton: Any = skeleton_for(pico.PICO["llama"](layers=LAYERS))
    skeleton.model.layers[3].self_attn.q_proj.weight = skeleton.model.layers[0].self_attn.q_proj.weight
    made = RECIPES["all"][0]
    assert Scales.of(skeleton).weigh(made) == plan_on(made, copy.deepcopy(skeleton)).result
    assert planned == [LAYERS]


def test_a_model_made_by_a_recipe_is_weighed_as_a_whole(planned: list[int]) -> None:
    model = apply(recipe({"routed": INT4}, mixture([1])), pico.PICO["llama"](layers=3))
    skeleton, made = skeleton_for(model), recipe({"attention": INT4})
    assert Scales.of(skeleton).weigh(made) == plan_on(made, copy.deepcopy(skeleton)).result
    assert planned == [3]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (recipe(MIXED, mixture([1, 9])), r"\[9\] have no feed-forward block; this model has them in layers \[0, 1, 2"),
        (recipe(MIXED, mixture([3], split=5)), "model.layers.3.mlp"),
        (recipe({"head": INT4, **MIXED}, mixture("all")), "head"),
    ],
)
def test_errors_are_about_the_whole_model(made: Any, words: str) -> None:
    with pytest.raises(MoteError, match=words):
        Scales.of(skeleton_for(pico.PICO["qwen2"](layers=LAYERS))).weigh(made)
