from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import nn
from transformers import PreTrainedModel

from mote_quant.anatomy.coverage import Row, assign_bits, coverage
from mote_quant.anatomy.inventory import inventory
from mote_quant.errors import FormatError, TargetError
from mote_quant.formats import format_for
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import install
from mote_quant.recipe.schema import Bits, FloatBits, IntegerBits, Upcycle
from mote_quant.steps.upcycle.layouts import plan_layouts
from tests.pico import PICO, llava

ADAPTER: TypeAdapter[dict[str, Bits]] = TypeAdapter(dict[str, Bits])


def bits(**rules: Any) -> dict[str, Bits]:
    return ADAPTER.validate_python(rules)


def mixture(family: str = "qwen2") -> PreTrainedModel:
    """A meta model whose every feed-forward is a mixture of two experts."""
    with torch.device("meta"):
        model = PICO[family]()
        for layout in plan_layouts(model, Upcycle(experts=2)):
            install(model, layout)
    return model


def test_the_first_rule_wins_and_integers_take_weights_only() -> None:
    rules = bits(**{"*.0.self_attn.q_proj": "int8", "attention": "int4"})
    assigned = assign_bits(rules, PICO["qwen2"]())
    names = [f"model.layers.{layer}.self_attn.{name}_proj" for layer in range(2) for name in "qkvo"]
    assert assigned == dict.fromkeys(names, rules["attention"]) | {names[0]: rules["*.0.self_attn.q_proj"]}


def test_floats_take_every_parameter_biases_too() -> None:
    assigned = assign_bits(bits(attention="bfloat16", norm="float32"), PICO["gpt2"]())
    assert assigned["transformer.h.0.attn.c_attn.bias"] == FloatBits(format="bfloat16")
    assert assigned["transformer.ln_f.weight"] == FloatBits(format="float32")
    assert not any(name.startswith("transformer.wte") for name in assigned)


@pytest.mark.parametrize("family", PICO)
def test_a_mixture_takes_a_whole_recipe(family: str) -> None:
    rules = bits(routed="ternary", shared="int4", attention="int8", router="float32", embedding="bfloat16")
    model = mixture(family)
    assigned = assign_bits(rules, model)
    assert {assigned[name].format for name in assigned if ".experts." in name} == {"ternary"}
    assert {assigned[name].format for name in assigned if ".shared_expert." in name} == {"int4"}
    for name, spec in assigned.items():
        if isinstance(spec, FloatBits):
            model.get_parameter(name)
        else:
            model.get_submodule(name)


def test_everything_at_once_leaves_what_cannot_be_packed() -> None:
    model = llava()
    assigned = assign_bits(bits(**{"*": "int8"}), model)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert assigned.keys() == linear


REFUSED: list[tuple[str, dict[str, Any], list[str]]] = [
    ("qwen2", {"norm": "int4"}, ["bits.norm", "layernorm.weight (norm", "int4", "float32, bfloat16 or float16"]),
    ("qwen2", {"embedding": "int4"}, ["bits.embedding", "model.embed_tokens.weight (embedding", "tied to lm_head"]),
    ("llama", {"embedding": "int8"}, ["bits.embedding", "model.embed_tokens.weight (embedding)", "int8"]),
    ("qwen2", {"head": "int8"}, ["bits.head", "lm_head.weight (head, tied to model.embed_tokens.weight)", "int8"]),
    ("qwen2", {"re:lm_head": "int8"}, ["bits.re:lm_head", "tied to"]),
    ("qwen2", {"*q_proj.bias": "int8"}, ["q_proj.bias (attention, a vector) cannot be int8"]),
    ("llava", {"Conv2d": "int8"}, ["patch_embedding.weight (vision) cannot be int8", "float32, bfloat16 or float16"]),
    ("llama", {"ffn": "ternary"}, ["bits.ffn", "gate_proj.weight (ffn) cannot be ternary", "routed experts only"]),
    ("llama", {"*": "ternary"}, ["bits.*", "cannot be ternary"]),
    (
        "llama",
        {"attention": {"format": "int4", "group_size": 64}},
        ["bits.attention", "group_size 64", "32 input features of model.layers.0.self_attn.q_proj"],
    ),
]


@pytest.mark.parametrize(("family", "rules", "words"), REFUSED, ids=[f"{f}-{next(iter(r))}" for f, r, _ in REFUSED])
def test_a_format_that_a_target_cannot_take(family: str, rules: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(FormatError) as raised:
        assign_bits(bits(**rules), PICO[family]())
    assert [word for word in words if word not in str(raised.value)] == []


@pytest.mark.parametrize("format", ["int8", "bfloat16"])
def test_a_router_stays_float32(format: str) -> None:
    with pytest.raises(FormatError, match=rf"gate\.weight \(router\) cannot be {format}; it takes float32$"):
        assign_bits(bits(router=format), mixture())


def test_groups_of_ternary_are_checked_too() -> None:
    ternary = {"format": "ternary", "granularity": "group", "group_size": 33}
    with pytest.raises(FormatError, match="group_size 33 is more than the 32 input features"):
        assign_bits(bits(routed=ternary), mixture())
    assert assign_bits(bits(routed=ternary | {"group_size": 32}), mixture())


def test_all_problems_come_at_once() -> None:
    with pytest.raises(FormatError) as raised:
        assign_bits(bits(norm="int4", ffn="ternary", embedding="int8"), PICO["llama"]())
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == [
        "bits.norm",
        "bits.ffn",
        "bits.embedding",
    ]


def test_a_target_that_means_nothing() -> None:
    with pytest.raises(TargetError, match="routed"):
        assign_bits(bits(routed="ternary"), PICO["llama"]())
    with pytest.raises(TargetError, match="mlp"):
        assign_bits(bits(**{"model.layers.0.mlpp": "int8"}), PICO["llama"]())


def test_a_packed_weight_takes_nothing_more() -> None:
    model = PICO["llama"]()
    model.lm_head = PackedLinear.empty(IntegerBits(format="int8"), 32, 96, False, torch.float32)
    for rule in ("int4", "bfloat16"):
        with pytest.raises(FormatError, match=r"lm_head\.weight.* \(head, packed already\) cannot be"):
            assign_bits(bits(head=rule), model)


def test_multihead_attention_keeps_its_output_layer() -> None:
    model = PICO["llama"]()
    model.model.layers[0].pool = nn.MultiheadAttention(32, 2)
    with pytest.raises(FormatError, match="cannot be int8"):
        assign_bits(bits(**{"*.pool.out_proj": "int8"}), model)


def test_a_tied_weight_follows_the_first_rule_that_means_either_name() -> None:
    model = PICO["qwen2"]()
    name = "model.embed_tokens.weight"
    assert assign_bits(bits(head="bfloat16"), model) == {name: FloatBits(format="bfloat16")}
    assert assign_bits(bits(head="bfloat16", embedding="float16"), model)[name].format == "bfloat16"
    assert assign_bits(bits(embedding="float16", head="bfloat16"), model)[name].format == "float16"


def test_the_table_counts_every_byte_once() -> None:
    model = mixture("gpt2")
    rules = bits(routed="ternary", shared="int4", head="float16")
    rows = coverage(rules, model)
    assert [row.target for row in rows[:3]] == ["routed", "shared", "head"]
    assert {row.format for row in rows[3:]} == {None}
    held = inventory(model)
    assert sum(row.bytes_before for row in rows) == sum(p.nbytes for p in held)
    assert sum(row.tensors for row in rows) == len(held)
    assert sum(row.weights for row in rows) == sum(p.count for p in held)


def test_the_table_of_a_small_model() -> None:
    model = PICO["qwen2"]()
    rules = bits(**{"attention": {"format": "int4", "group_size": 16, "symmetric": False}, "norm": "bfloat16"})
    rows = {row.target: row for row in coverage(rules, model) if row.format is not None}
    shapes = [(32, 32), (16, 32), (16, 32), (32, 32)] * 2
    stored = [format_for(rules["attention"]).layout(shape).values() for shape in shapes]  # type: ignore[arg-type]
    weights = sum(rows * columns for rows, columns in shapes)
    packed = sum(part.nbytes for layout in stored for part in layout)
    assert rows["attention"] == Row("attention", "int4", 8, weights, 4 * weights, packed)
    assert rows["norm"] == Row("norm", "bfloat16", 5, 5 * 32, 5 * 32 * 4, 5 * 32 * 2)
    untouched = {row.target: row for row in coverage(rules, model) if row.format is None}
    biases = 2 * (32 + 16 + 16)
    assert untouched["attention"] == Row("attention", None, 6, biases, 4 * biases, 4 * biases)
    assert untouched.keys() == {"attention", "embedding", "ffn"}


def test_conv1d_is_packed_by_its_input_columns() -> None:
    """GPT-2 holds [in, out]: the down projection has 48 inputs, though its weight has 32 columns."""
    rules = bits(**{"transformer.h.0.mlp.c_proj": {"format": "int8", "group_size": 48}})
    row = coverage(rules, PICO["gpt2"]())[0]
    assert row.bytes_after == 32 * 48 + 32 * 2
