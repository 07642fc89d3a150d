"""torch.compile of whole models: one graph where every expert is packed, a break a layer where they are floats."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM

import mote_quant
from mote_quant.moe import blocks
from tests import pico
from tests.finished import finished
from tests.mixtures import logits, mixture
from tests.rounding import assert_same_to_rounding

# torch's own, of what it calls itself as it compiles.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
PROMPT = torch.tensor([[11, 12, 13, 14, 15]])


@pytest.fixture(autouse=True)
def afresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@torch.no_grad()
def compiled_logits(model, **options) -> torch.Tensor:
    ids = pico.inputs(model)["input_ids"]
    return torch.compile(model, **({"backend": "eager"} | options))(ids, use_cache=False).logits


def test_a_packed_model_is_one_graph(packed):
    model = AutoModelForCausalLM.from_pretrained(packed)
    wanted = logits(model)
    torch.testing.assert_close(compiled_logits(model, fullgraph=True, backend="aot_eager"), wanted)
    assert graphs() == 1


def test_so_is_one_that_skips_experts(packed):
    model = AutoModelForCausalLM.from_pretrained(packed)
    logits(model)
    for block in blocks(model).values():
        sure = block._last.probabilities.max(dim=-1).values
        block.layout = dataclasses.replace(block.layout, skip_below=float(sure.median()))
    wanted = logits(model)
    kept = next(iter(blocks(model).values()))._last.kept
    assert kept.any()
    assert not kept.all()
    torch.testing.assert_close(compiled_logits(model, fullgraph=True), wanted)


def test_generating_is_two_graphs(packed):
    """One of the prompt, one of all tokens after it."""
    model = AutoModelForCausalLM.from_pretrained(packed)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    written = model.generate(PROMPT, **settings)
    model.forward = torch.compile(model.forward, fullgraph=True, backend="eager")
    assert torch.equal(model.generate(PROMPT, **settings), written)
    assert graphs() == 2


@pytest.mark.slow
def test_generating_by_compiled_code(packed):
    model = AutoModelForCausalLM.from_pretrained(packed)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    written = model.generate(PROMPT, **settings)
    model.forward = torch.compile(model.forward, fullgraph=True)
    assert torch.equal(model.generate(PROMPT, **settings), written)


MIXED = {"*.experts.1.*": {"format": "int8", "method": "rtn"}, "routed": {"format": "int4", "group_size": 16}}
NOT_TERNARY = {
    "trained int4": lambda: finished("llama", {"routed": {"format": "int4", "group_size": 16, "method": "qat"}}),
    "ternary in groups": lambda: finished(
        "gpt2", {"routed": {"format": "ternary", "granularity": "group", "group_size": 16}}
    ),
    "a model's own, of two formats": lambda: mote_quant.apply(
        {"name": "own", "bits": MIXED, "pipeline": [{"quantize": {}}]}, pico.qwen2_moe()
    ),
}


@pytest.mark.parametrize("name", NOT_TERNARY)
def test_packed_experts_of_any_format_are_within_the_graph(name):
    model = NOT_TERNARY[name]()
    wanted = logits(model)
    assert_same_to_rounding(compiled_logits(model, fullgraph=True), wanted)
    assert graphs() == 1


def test_float_experts_break_the_graph_once_a_layer_and_no_count_of_tokens_makes_another():
    model = mixture(layers=1, shared="none", top_k=2).train(False)
    compiled = torch.compile(model, backend="eager")
    made = []
    with torch.no_grad():
        for seed in range(4):
            ids = pico.inputs(model, seed=seed)["input_ids"]
            assert torch.equal(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)
            made.append(graphs())
    assert len(set(made)) == 1
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="_dispatch"):
        compiled_logits(model, fullgraph=True)
