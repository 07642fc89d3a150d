"""Weights that stand still are quantized once, and weights that move never less than that."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mote_quant.kernels.cpu import library
from mote_quant.qat import fake
from mote_quant.qat.keeping import keeping
from mote_quant.qat.latent import Latent
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import TernaryBits
from mote_quant.steps.train import callbacks
from tests import pico
from tests.mixtures import TERNARY, bits_of, one_block, train_it, upcycled

LEARNED = {"routed": {"format": "ternary", "scales": "learned"}}


def tokens(seed: int = 0) -> Tensor:
    return torch.randn(40, 32, generator=torch.Generator().manual_seed(seed))


def layers(block) -> list[QatLinear]:
    return [module for module in block.modules() if isinstance(module, QatLinear)]


@pytest.fixture
def quantized(monkeypatch) -> list[int]:
    """The data pointer of every weight that is quantized, as often as it is."""
    found: list[int] = []
    make = Latent.of.__func__

    def counted(cls, weight, *others):
        found.append(weight.data_ptr())
        return make(cls, weight, *others)

    monkeypatch.setattr(Latent, "of", classmethod(counted))
    return found


@pytest.fixture
def block(quantized):
    """A layer in training; up-cycling has tried it out before."""
    made = one_block(TERNARY).train()
    quantized.clear()
    return made


def test_micro_batches_share_the_codes_of_a_step(block, quantized):
    with keeping(block):
        for seed in range(3):
            block(tokens(seed)).sum().backward()
    assert sorted(quantized) == sorted(layer.weight.data_ptr() for layer in layers(block))
    assert all(layer._kept is None and not layer.keeps for layer in layers(block))
    quantized.clear()
    block(tokens())
    block(tokens())
    assert len(quantized) == 2 * 12


def test_only_experts_with_tokens_are_quantized(block, quantized):
    with torch.no_grad():
        block.gate.weight.zero_()
        block.gate.weight[2, 0] = 20.0
    x = tokens()
    x[:, 0] = 1.0
    block(x).sum().backward()
    assert sorted(quantized) == sorted(layer.weight.data_ptr() for layer in layers(block.experts[2]))


def test_a_checkpointed_forward_runs_twice_and_quantizes_once(block, quantized):
    with keeping(block):
        checkpoint(block, tokens().requires_grad_(), use_reentrant=False).sum().backward()
    assert len(quantized) == len(set(quantized)) == 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_on_its_own_uses_what_is_kept_too(quantized, monkeypatch, dtype):
    layer = QatLinear(32, 24, TernaryBits(format="ternary"), dtype=dtype)
    x = tokens().requires_grad_()
    expected = layer(x)
    (wanted,) = torch.autograd.grad(expected.square().sum(), layer.weight)
    monkeypatch.setattr(fake, "rounded_weight", None)
    with keeping(layer):
        assert torch.equal(layer(x), expected)
        layer(x).square().sum().backward()
    assert len(quantized) == 1
    assert torch.equal(layer.weight.grad, wanted)
    assert layer.weight.grad.dtype == dtype


def step(block) -> None:
    torch.optim.SGD(block.parameters(), lr=3.0).step()


def load(block) -> None:
    block.load_state_dict({name: tensor.flip(0) for name, tensor in block.state_dict().items()})


def replace(block) -> None:
    for parameter in block.parameters():
        parameter.data = parameter.data.flip(0)


def cast(block) -> None:
    for layer in layers(block):
        layer.to(torch.bfloat16)


def swap(block) -> None:
    for layer in layers(block):
        layer.weight = torch.nn.Parameter(layer.weight.detach().flip(0))


@pytest.mark.parametrize("bits", [TERNARY, LEARNED], ids=["absmean", "learned"])
@pytest.mark.parametrize("move", [step, load, replace, cast, swap])
def test_weights_that_move_in_between_are_quantized_anew(move, bits):
    block = one_block(bits).train()
    with keeping(block):
        block(tokens()).square().sum().backward()
        move(block)
        kept = block(tokens())
    assert torch.equal(kept, block(tokens()))


def test_a_learned_scale_alone_may_move():
    block = one_block(LEARNED).train()
    with keeping(block), torch.no_grad():
        before = block(tokens())
        for layer in layers(block):
            layer.weight_scale.mul_(1.5)
        after = block(tokens())
    assert not torch.equal(after, before)
    assert torch.equal(after, block(tokens()))


def test_the_ramp_and_full_precision_never_see_codes_that_were_kept(block):
    with keeping(block):
        found = []
        for strength in (1.0, 0.5, 0.0, 1.0):
            for layer in layers(block):
                layer.strength = strength
            found.append(block(tokens()))
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


def test_evaluation_in_between_uses_them_too(block, quantized):
    with keeping(block):
        trained = block(tokens())
        with torch.inference_mode():
            evaluated = block.eval()(tokens())
    assert torch.equal(evaluated, trained)
    assert len(quantized) == 12


def test_copies_and_pickles_leave_them_behind(block):
    with keeping(block):
        expected = block(tokens())
        assert all(layer._kept is not None for layer in layers(block))
        for made in (copy.deepcopy(block.experts), pickle.loads(pickle.dumps(block.experts))):
            assert all(layer._kept is None for layer in layers(made))
            block.experts = made
            assert torch.equal(block(tokens()), expected)


def _failing(block) -> None:
    with keeping(block):
        block(tokens())
        block(torch.empty(3, 31))


def test_nothing_is_kept_after_a_failure(block):
    with pytest.raises(RuntimeError):
        _failing(block)
    assert all(layer._kept is None and not layer.keeps for layer in layers(block))


def test_what_is_kept_is_a_sixteenth_or_a_quarter_without_kernels(block):
    with keeping(block):
        block(tokens())
        kept = sum(layer._kept[1].codes.nbytes for layer in layers(block))
    share = 4 if library.library() is None else 16
    assert kept * share == sum(layer.weight.nbytes for layer in layers(block))


def test_the_train_step_quantizes_once_an_optimizer_step_and_learns_the_same(quantized, monkeypatch):
    def trained() -> dict:
        model = pico.PICO["llama"]()
        context = upcycled(model, TERNARY)
        quantized.clear()
        train_it(model, context, steps=2, gradient_accumulation=3, what=["*"], warmup=0.0)
        assert all(layer._kept is None and not layer.keeps for layer in layers(model))
        return bits_of(model.state_dict())

    kept = trained()
    often = len(quantized)
    assert often <= 2 * 2 * 12
    monkeypatch.setattr(callbacks.Accumulation, "on_step_begin", lambda self, *others, **more: None)
    plain = trained()
    assert len(quantized) > 2 * often
    assert all(torch.equal(kept[name], plain[name]) for name in plain)
