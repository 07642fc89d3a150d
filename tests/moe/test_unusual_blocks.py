"""Mixtures around blocks that are not three linear layers and an activation module: what their experts start from."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eval.families.builders import LANGUAGE, ODD, inputs
from eval.families.dense import logits
from mote_quant.errors import RequestError
from mote_quant.moe import MoteLayout, blocks
from mote_quant.planning import plan
from tests.mixtures import TERNARY, quantize_it, upcycled

UNUSUAL = {
    "fused": "Phi-3",
    "function": "LFM2",
    "factors": "Falcon-H1",
    "residual": "BLOOM",
    "parameters": "Apertus",
    "norm": "BitNet",
}
EXACT: dict[str, Any] = {"noise": 0.0, "experts": 2}


def made(family: str, sizes: dict[str, int] | None = None, **settings: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """(a dense model, the same up-cycled)."""
    dense = LANGUAGE[family](**(sizes or {}))
    model = copy.deepcopy(dense)
    upcycled(model, **settings)
    return dense, model


@pytest.mark.parametrize("trait", UNUSUAL)
def test_experts_alone_start_as_the_dense_block(trait: str) -> None:
    sizes = {} if trait == "factors" else ODD  # a state space's heads have sizes of their own
    dense, model = made(UNUSUAL[trait], sizes, **EXACT, shared="none", top_k=2)
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trait", UNUSUAL)
def test_a_convex_mix_of_equals_is_the_dense_block(trait: str) -> None:
    dense, model = made(UNUSUAL[trait], **EXACT, combine="convex", mix=0.3)
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("trait", UNUSUAL)
def test_low_rank_changes_start_at_nothing_and_then_change(trait: str) -> None:
    dense, model = made(UNUSUAL[trait], lora_rank=2, experts=2)
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-4)
    for block in blocks(model).values():
        for name, parameter in block.experts.named_parameters():
            if "lora_B" in name:
                parameter.data.fill_(0.1)
    assert not torch.allclose(logits(model), logits(dense), atol=1e-2)


@pytest.mark.parametrize("trait", [trait for trait in UNUSUAL if trait != "norm"])
def test_parts_of_a_block_sum_to_it(trait: str) -> None:
    settings = {"noise": 0.0, "split": 2, "experts": 2, "top_k": 2, "shared": "none", "normalize_gates": False}
    dense, model = made(UNUSUAL[trait], **settings)
    for block in blocks(model).values():
        block.gate.weight.data.zero_()  # gates of one half each
        for expert in block.experts:
            expert.down_proj.weight.data.mul_(2)
            if expert.down_proj.bias is not None:
                expert.down_proj.bias.data.mul_(2)
    torch.testing.assert_close(logits(model), logits(dense), rtol=1e-4, atol=1e-4)


def test_what_is_normed_together_is_not_split() -> None:
    with pytest.raises(RequestError, match=r"mlp norms its hidden units together \(ffn_sub_norm\)"):
        made("BitNet", split=2)


def test_halves_of_a_fused_layer() -> None:
    dense, model = made("Phi-3", **EXACT)
    for path, block in blocks(model).items():
        first, second = dense.get_submodule(path).gate_up_proj.weight.chunk(2)
        for expert in block.experts:
            assert torch.equal(expert.gate_proj.weight, first)
            assert torch.equal(expert.up_proj.weight, second)
        assert torch.equal(block.shared_expert.gate_up_proj.weight, torch.cat([first, second]))
        assert block.layout.fused == "gate_first"


def test_factors_are_in_the_weights() -> None:
    dense, model = made("Falcon-H1", **EXACT)
    for path, block in blocks(model).items():
        mlp = dense.get_submodule(path)
        for expert in block.experts:
            assert torch.equal(expert.gate_proj.weight, 0.875 * mlp.gate_proj.weight)
            assert torch.equal(expert.up_proj.weight, mlp.up_proj.weight)
            assert torch.equal(expert.down_proj.weight, 0.5859375 * mlp.down_proj.weight)


@pytest.mark.parametrize(("family", "owned"), [("Apertus", "act_fn.alpha_p"), ("BitNet", "ffn_sub_norm.weight")])
def test_weights_between_the_layers_are_the_shared_experts(family: str, owned: str) -> None:
    _, model = made(family, **EXACT)
    path = next(iter(blocks(model)))
    names = [name for name in model.state_dict() if name.startswith(path) and owned.rpartition(".")[2] in name]
    assert f"{path}.shared_expert.{owned}" in names
    assert not [name for name in names if name.startswith(f"{path}.activation")]
    assert plan({"name": "p", "bits": TERNARY, "pipeline": [{"upcycle": {}}]}, LANGUAGE[family]()).result.stored_bytes
    clone = copy.deepcopy(model)
    clone.get_submodule(f"{path}.shared_expert.{owned.rpartition('.')[0]}").register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clone(**inputs(clone))
    logits(model)


@pytest.mark.parametrize("trait", UNUSUAL)
def test_layouts_are_read_as_they_were_written(trait: str) -> None:
    _, model = made(UNUSUAL[trait], **EXACT)
    for block in blocks(model).values():
        assert MoteLayout.from_dict(block.layout.to_dict()) == block.layout


def test_layouts_of_plain_blocks_are_as_earlier_versions_wrote_them() -> None:
    _, model = made("Llama", **EXACT)
    written = next(iter(blocks(model).values())).layout.to_dict()
    assert not {"fused", "function", "gate_scale", "output_scale", "residual", "norm"} & written.keys()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"function": "silu"}, "the activation is a child of the block, or a function"),
        ({"activation": None}, "the activation is a child of the block, or a function"),
        ({"fused": "gate_first"}, "fused gate and up are one layer"),
        ({"fused": "gate_last"}, "gate_first"),
        ({"norm": "ln", "split": 2}, "ln norms the whole width"),
    ],
)
def test_layouts_that_cannot_be(wrong: dict[str, Any], message: str) -> None:
    _, model = made("Llama", **EXACT)
    written = next(iter(blocks(model).values())).layout.to_dict()
    with pytest.raises(ValueError, match=message):
        MoteLayout.from_dict(written | wrong)


def test_gradients_reach_an_activation_that_learns() -> None:
    model = LANGUAGE["Apertus"]()
    context = upcycled(model, TERNARY)
    model.train()
    model(**inputs(model)).loss.backward()
    for block in blocks(model).values():
        assert block.activation.alpha_p.grad.abs() > 0
        assert all(expert.up_proj.weight.grad is not None for expert in block.experts[:1])
    model.zero_grad()
    quantize_it(model, context)
    assert logits(model).isfinite().all()


class Counting(nn.Module):
    """A shared expert that counts its calls."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.calls = inside, 0

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        self.calls += 1
        assert not residual.any()
        return self.inside(x, residual)


def test_a_residual_is_added_once_and_by_the_mixture() -> None:
    _, model = made("BLOOM", **EXACT)
    block = next(iter(blocks(model).values()))
    block.shared_expert = Counting(block.shared_expert)
    x, residual = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    with torch.no_grad():
        torch.testing.assert_close(block(x, residual) - block(x, torch.zeros_like(x)), residual)
    assert block.shared_expert.calls == 2
