"""What the parts of models with experts are for, family by family, and that a rule for one of them is for it alone."""

from __future__ import annotations

from collections import Counter

import pytest

from mote_quant.anatomy.inventory import inventory
from mote_quant.errors import AlreadyMoEError
from mote_quant.planning import plan
from tests.pico_moe import PICO_MOE

# The layers with a shared expert; then families whose first layer is dense, and those with one mixture of two layers.
SHARED = {
    "Qwen2-MoE": {0, 1}, "DeepSeek-V2": {1}, "DeepSeek-V3": {1}, "GLM4-MoE": {1}, "Ernie4.5-MoE": {1},
    "Qwen3-Next": {0, 1}, "Qwen3.5-MoE": {0, 1}, "GraniteMoeShared": {0, 1}, "dots1": {1}, "Nemotron-H": {0},
    "DeepSeek-V4": {0, 1}, "Llama 4": {1},
}  # fmt: skip
DENSE = {"DeepSeek-V2", "DeepSeek-V3", "GLM4-MoE", "Ernie4.5-MoE", "Jamba", "dots1", "LFM2-MoE", "Llama 4"}
ONE_MIXTURE = DENSE | {"Nemotron-H"}


def layer_of(name: str) -> int | None:
    return next((int(part) for part in name.split(".") if part.isdigit()), None)


@pytest.mark.parametrize("family", PICO_MOE)
def test_every_part_has_its_role(family: str) -> None:
    model = PICO_MOE[family]()
    layers: dict[str, set[int | None]] = {}
    shapes = Counter()
    for parameter in inventory(model):
        layers.setdefault(parameter.role, set()).add(layer_of(parameter.name))
        if parameter.role == "routed" and parameter.name.endswith("proj"):
            shapes[parameter.shape[0]] += 1
    mixtures = ({0} if family == "Nemotron-H" else {1}) if family in ONE_MIXTURE else {0, 1}
    assert layers["routed"] == layers["router"] == mixtures
    assert layers.get("shared", set()) == SHARED.get(family, set())
    assert layers.get("ffn", set()) == ({0} if family in DENSE else set())
    assert shapes == {3 if family == "Qwen2-MoE" else 4: 2 * len(mixtures)}


@pytest.mark.parametrize("family", SHARED)
def test_shared_experts_are_quantized_where_they_are_named(family: str) -> None:
    model = PICO_MOE[family]()
    roles = {p.name.rpartition(".")[0]: p.role for p in inventory(model)}

    def changed(target: str) -> set[str]:
        recipe = {"name": "x", "bits": {target: {"format": "int4", "group_size": 16}}, "pipeline": ["quantize"]}
        return set(plan(recipe, model).formats)

    shared = {name for name, role in roles.items() if role == "shared"}
    assert changed("shared") == shared
    assert not changed("routed") & shared
    assert all(".experts." in name for name in changed("routed"))


@pytest.mark.parametrize("family", PICO_MOE)
def test_they_are_not_up_cycled(family: str) -> None:
    recipe = {"name": "x", "bits": {"routed": "ternary"}, "pipeline": [{"upcycle": {}}, "quantize"]}
    with pytest.raises(AlreadyMoEError, match=r"already holds experts; only dense feed-forward blocks"):
        plan(recipe, PICO_MOE[family]())
