from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import Conv1D, PreTrainedModel

from mote_quant.anatomy.activation import is_activation
from mote_quant.anatomy.feedforward import FeedForward, find_feedforwards, verify
from mote_quant.errors import AlreadyMoEError, BadWeightsError, UnsupportedModelError
from tests.pico import ODD, PICO, qwen2_moe

GATED = ("gated", "gate_proj", "up_proj", "down_proj", "act_fn")
BLOCKS: dict[str, tuple[str, tuple[str, str | None, str, str, str], bool]] = {
    "llama": ("model.layers.{}.mlp", GATED, False),
    "qwen2": ("model.layers.{}.mlp", GATED, False),
    "qwen3": ("model.layers.{}.mlp", GATED, False),
    "mistral": ("model.layers.{}.mlp", GATED, False),
    "gemma": ("model.layers.{}.mlp", GATED, False),
    "gemma2": ("model.layers.{}.mlp", GATED, False),
    "phi": ("model.layers.{}.mlp", ("plain", None, "fc1", "fc2", "activation_fn"), True),
    "gpt2": ("transformer.h.{}.mlp", ("plain", None, "c_fc", "c_proj", "act"), True),
    "opt": ("model.decoder.layers.{}", ("plain", None, "fc1", "fc2", "activation_fn"), True),
    "llava": ("model.language_model.layers.{}.mlp", GATED, False),
    "qwen2_5_vl": ("model.language_model.layers.{}.mlp", GATED, False),
}


def expected(family: str, hidden: int = 32, ffn: int = 48) -> list[FeedForward]:
    path, (kind, gate, up, down, activation), bias = BLOCKS[family]
    return [
        FeedForward(
            path=path.format(layer),
            kind=kind,
            up=up,
            down=down,
            gate=gate,
            activation=activation,
            inline=family == "opt",
            layer=layer,
            hidden_size=hidden,
            intermediate_size=ffn,
            bias=bias,
        )
        for layer in range(2)
    ]


def test_every_pico_family_is_expected() -> None:
    assert BLOCKS.keys() == PICO.keys()


@pytest.mark.parametrize("sizes", [{}, ODD], ids=["even", "odd"])
@pytest.mark.parametrize("family", PICO)
def test_blocks_are_found_and_verified(family: str, sizes: dict[str, int]) -> None:
    model = PICO[family](**sizes)
    found = find_feedforwards(model)
    assert found == expected(family, **sizes)
    for block in found:
        verify(model, block)


@pytest.mark.parametrize("family", PICO)
def test_blocks_are_found_on_the_meta_device(family: str) -> None:
    with torch.device("meta"):
        model = PICO[family]()
        found = find_feedforwards(model)
        verify(model, found[0])
    assert found == expected(family)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_blocks_of_other_types_are_verified(family: str, dtype: torch.dtype) -> None:
    model = PICO[family]().to(dtype)
    assert find_feedforwards(model) == expected(family)
    verify(model, expected(family)[0])


class Block(nn.Module):
    """A gated block whose child names say nothing, or lie."""

    def __init__(self, first: str, second: str, hidden: int = 32, inner: int = 48) -> None:
        super().__init__()
        self.add_module(first, nn.Linear(hidden, inner))
        self.add_module(second, nn.Linear(hidden, inner))
        self.names = (first, second)
        self.out = nn.Linear(inner, hidden)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (self.get_submodule(name)(x) for name in self.names)
        y: Tensor = self.out(self.act(gate) * up)
        return y


def with_blocks(make: Callable[[], nn.Module], family: str = "llama") -> PreTrainedModel:
    model = PICO[family]()
    for layer in model.model.layers:
        layer.mlp = make()
    return model


@pytest.mark.parametrize(("first", "second"), [("w1", "w3"), ("up_proj", "gate_proj"), ("b", "a")])
def test_numbers_decide_which_linear_is_the_gate(first: str, second: str) -> None:
    model = with_blocks(lambda: Block(first, second))
    for block in find_feedforwards(model):
        assert (block.gate, block.up) == (first, second)
        verify(model, block)


class SwappedBlock(Block):
    def forward(self, x: Tensor) -> Tensor:
        up, gate = (self.get_submodule(name)(x) for name in self.names)
        y: Tensor = self.out(self.act(gate) * up)
        return y


def test_numbers_decide_against_the_order() -> None:
    model = with_blocks(lambda: SwappedBlock("w1", "w3"))
    assert [(block.gate, block.up) for block in find_feedforwards(model)] == [("w3", "w1")] * 2


def test_the_forward_decides_where_there_are_no_weights() -> None:
    with torch.device("meta"):
        model = with_blocks(lambda: Block("up_proj", "gate_proj"))
    assert [block.gate for block in find_feedforwards(model)] == ["up_proj"] * 2


def test_verify_refuses_gate_and_up_exchanged() -> None:
    model = PICO["llama"]()
    block = find_feedforwards(model)[0]
    with pytest.raises(UnsupportedModelError, match=r"model\.layers\.0\.mlp .* off by .* from down_proj"):
        verify(model, replace(block, gate=block.up, up="gate_proj"))


class Tampered(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.01


class Hidden(Block):
    """Does not call its last layer, so that only its numbers tell what it does."""

    def forward(self, x: Tensor) -> Tensor:
        gate, up = (self.get_submodule(name)(x) for name in self.names)
        return 1.01 * torch.nn.functional.linear(self.act(gate) * up, self.out.weight, self.out.bias)


class Needy(Block):
    def forward(self, x: Tensor, residual: Tensor, more: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + residual + more


class Multiplying(Block):
    def forward(self, x: Tensor, residual: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * residual


class Talkative(Block):
    def forward(self, x: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return super().forward(x), None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Tampered, r"does not give act\(gate\(x\)\) \* up\(x\) to out, or does not return what that makes of it"),
        (Multiplying, "does not return what that makes of it"),
        (Hidden, "off by 1.0% from out"),
        (Needy, "cannot be called with hidden states alone"),
        (Talkative, "one tensor"),
    ],
)
def test_verify_refuses_a_block_that_does_something_else(kind: type[Block], message: str) -> None:
    model = with_blocks(lambda: kind("w1", "w3"))
    block = find_feedforwards(model)[0]
    with pytest.raises(UnsupportedModelError, match=message):
        verify(model, block)


def test_verify_names_weights_that_are_not_finite() -> None:
    model = PICO["llama"]()
    model.model.layers[1].mlp.up_proj.weight.data[3, 3] = torch.nan
    first, second = find_feedforwards(model)
    verify(model, first)
    with pytest.raises(BadWeightsError, match="not finite"):
        verify(model, second)


def test_verify_leaves_no_trace() -> None:
    model = PICO["gpt2"]()
    model.train()
    model.transformer.h[0].mlp.c_fc.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    for block in find_feedforwards(model):
        verify(model, block)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_layers_without_a_block_are_skipped() -> None:
    model = PICO["llama"]()
    model.model.layers[0].mlp = nn.Identity()
    assert [block.layer for block in find_feedforwards(model)] == [1]


def test_a_small_side_branch_is_not_the_block() -> None:
    model = PICO["llama"]()
    model.model.layers[0].adapter = nn.Sequential(nn.Linear(32, 4), nn.GELU(), nn.Linear(4, 32))
    assert find_feedforwards(model) == expected("llama")


def test_square_blocks_take_the_last_linear_as_down() -> None:
    model = PICO["llama"](hidden=32, ffn=32)
    assert find_feedforwards(model) == expected("llama", 32, 32)
    verify(model, find_feedforwards(model)[0])


def test_a_model_with_experts_is_refused() -> None:
    with pytest.raises(AlreadyMoEError, match=r"model\.layers\.0\.mlp\.experts already holds experts"):
        find_feedforwards(qwen2_moe())


def test_a_list_of_experts_is_refused() -> None:
    model = PICO["llama"]()
    layer = model.model.layers[1]
    layer.branches = nn.ModuleList(Block("w1", "w3") for _ in range(2))
    with pytest.raises(AlreadyMoEError, match=r"layers\.1\.branches"):
        find_feedforwards(model)


def test_a_block_that_declares_experts_is_refused() -> None:
    model = PICO["llama"]()
    model.model.layers[1].mlp.parameter_roles = {"experts": "routed"}
    with pytest.raises(AlreadyMoEError, match=r"layers\.1\.mlp already"):
        find_feedforwards(model)


class Plain(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        for index, part in enumerate(parts):
            self.add_module(f"part{index}", part)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Linear(32, 32), "no module with an h -> i and an i -> h linear pair"),
        (lambda: Plain(nn.Linear(32, 48), Conv1D(32, 48)), "pair part0 and part1, but no activation module"),
        (
            lambda: Plain(nn.Linear(32, 48), nn.ReLU(), nn.GELU(), nn.Linear(48, 32)),
            "pair part0 and part3, but 2 activation modules",
        ),
        (
            lambda: Plain(nn.Linear(32, 48), nn.ReLU(), nn.LayerNorm(32), nn.Linear(48, 32)),
            "mlp has further weights beside its linear layers, in part2",
        ),
    ],
)
def test_the_missing_trait_is_named(make: Callable[[], nn.Module], reason: str) -> None:
    with pytest.raises(UnsupportedModelError) as raised:
        find_feedforwards(with_blocks(make))
    assert reason in str(raised.value)


def test_each_layer_has_its_own_reason() -> None:
    model = PICO["llama"]()
    model.model.layers[0].mlp = nn.Linear(32, 32)
    model.model.layers[1].mlp = Plain(nn.Linear(32, 48), nn.Linear(48, 32))
    with pytest.raises(UnsupportedModelError, match=r"(?s)layer 0: no module.*layer 1: mlp has the linear pair"):
        find_feedforwards(model)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no list of decoder layers"):
        find_feedforwards(nn.Sequential(nn.Linear(2, 2)))


@pytest.mark.parametrize("module", [nn.GELU(), nn.ReLU(), nn.SiLU(), nn.Tanh(), nn.PReLU()])
def test_activations(module: nn.Module) -> None:
    assert is_activation(module)


@pytest.mark.parametrize(
    "module",
    [nn.Dropout(0.5), nn.Identity(), nn.Softmax(-1), nn.PReLU(6), nn.LayerNorm(6, elementwise_affine=False), nn.GLU()],
)
def test_what_is_no_activation(module: nn.Module) -> None:
    assert not is_activation(module)
