"""Router losses weigh what a trainer makes of the loss, whatever it does to it and however the layers run."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from transformers.modeling_outputs import ModelOutput

import mote_quant
from mote_quant.moe import blocks
from mote_quant.moe.pull import Pulls, felt_by_tokens
from tests import pico
from tests.mixtures import TERNARY, logits, mixture, one_block

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

GATE = "model.layers.0.mlp.gate.weight"


def model_with(balance: float, z: float):
    return mote_quant.trainable(mixture(TERNARY), balance_loss=balance, z_loss=z).train()


def router_share(backward, prepare=lambda model: model, balance: float = 1.0) -> torch.Tensor:
    """The part of the router's gradient that is of its own losses, after `backward(model)`."""
    found = []
    for strength in (balance, 0.0):
        model = prepare(model_with(strength, strength))
        backward(model)
        found.append(dict(model.named_parameters())[GATE].grad.clone())
    return found[0] - found[1]


def batch(model, seed: int = 0) -> dict[str, torch.Tensor]:
    return pico.inputs(model, batch=4, seed=seed)


def once(model) -> None:
    model(**batch(model)).loss.backward()


@pytest.fixture(scope="module")
def whole() -> torch.Tensor:
    """The share of one forward and backward of a batch."""
    share = router_share(once)
    assert share.norm() > 1e-2
    return share


def assert_alike(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def reentrant(model):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    model.enable_input_require_grads()
    return model


def not_reentrant(model):
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def compiled(model):
    model.compile(backend="aot_eager")
    return model


RUNS = {
    "plain": lambda model: model,
    "reentrant": reentrant,
    "not reentrant": not_reentrant,
    "compiled": compiled,
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
}


def divided(model) -> None:
    for _ in range(4):
        (model(**batch(model)).loss / 4).backward()


def divided_at_once(model) -> None:
    (sum(model(**batch(model)).loss for _ in range(4)) / 4).backward()


def scaled(model) -> None:
    (model(**batch(model)).loss * 2.0**16).backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= 2.0**16


def divided_by_tokens(model) -> None:
    items = 4 * (batch(model)["labels"][:, 1:] != -100).sum()
    for given in (items, items, int(items), items):
        model(**batch(model), num_items_in_batch=given).loss.backward()


def in_a_tuple(model) -> None:
    (model(**batch(model), return_dict=False)[0] / 2).backward()
    (model(**batch(model), return_dict=False)[0] / 2).backward()


CASES = [(way, "plain") for way in (divided_at_once, scaled, divided_by_tokens, in_a_tuple)]
CASES += [pytest.param(divided, run, marks=[pytest.mark.slow] if run == "compiled" else []) for run in RUNS]


@pytest.mark.parametrize(("way", "run"), CASES)
@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad:UserWarning")
def test_whatever_becomes_of_the_loss_becomes_of_the_router_losses(whole, way, run):
    assert_alike(router_share(way, RUNS[run]), whole)


@pytest.mark.parametrize("run", ["plain", "reentrant", "not reentrant"])
@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad:UserWarning")
def test_several_forwards_keep_each_its_own(run):
    """Two batches, weighed 1 and 3, in one backward, as one after the other."""

    def together(model) -> None:
        first, second = (model(**batch(model, seed=seed)).loss for seed in (0, 5))
        (first + 3 * second).backward()

    def apart(model) -> None:
        model(**batch(model, seed=0)).loss.backward()
        (3 * model(**batch(model, seed=5)).loss).backward()

    assert_alike(router_share(together, RUNS[run]), router_share(apart))


def test_micro_batches_weigh_as_their_tokens(whole):
    """A micro-batch with a third of a step's labels has a third of the weight."""

    def uneven(model) -> None:
        given = batch(model)
        given["labels"][:, 4:] = -100
        own = (given["labels"][:, 1:] != -100).sum()
        model(**given, num_items_in_batch=3 * own).loss.backward()

    assert_alike(router_share(uneven), whole / 3)


def test_without_labels_the_weight_is_one_and_a_loss_of_ones_own_can_be_followed(whole):
    def without(model, factor: float, follows: bool) -> None:
        given = batch(model)
        labels = given.pop("labels")
        loss = model.loss_function(model(**given).logits, labels, model.config.vocab_size)
        ((mote_quant.follow_loss(model, loss) if follows else loss) * factor).backward()

    assert_alike(router_share(lambda model: without(model, 0.25, False)), whole)
    assert_alike(router_share(lambda model: without(model, 0.25, True)), whole / 4)
    after = router_share(lambda model: (once(model), model.zero_grad(), without(model, 7.0, False)))
    assert_alike(after, whole)


def test_a_mixture_of_losses_can_be_followed(whole):
    def mixed(model, weight: float) -> None:
        out = model(**batch(model))
        loss = weight * out.loss + (1 - weight) * out.logits.square().mean()
        (mote_quant.follow_loss(model, loss) / 2).backward()

    for weight in (0.5, 0.0):
        assert_alike(router_share(lambda model, weight=weight: mixed(model, weight)), whole / 2)


def test_a_loss_made_of_log_probabilities_is_understood():
    counted = torch.tensor([[True, True, False], [True, False, False]])

    def factor(make, mask=counted) -> float:
        pulls = Pulls()
        pull = pulls.current()
        log_probs = felt_by_tokens(torch.full((2, 3), -2.0, requires_grad=True), mask, pulls)
        make(log_probs).backward()
        return float(pull.factor(torch.device("cpu")))

    assert factor(lambda p: -p.sum() / 12) == pytest.approx(0.25)
    assert factor(lambda p: -(p * counted).sum() / 3) == 1.0
    assert factor(lambda p: (p[0] - p[1]).sum()) == 1.0, "a loss of preferences"
    assert factor(lambda p: -p.sum() / 12, torch.zeros_like(counted)) == 0.0


def test_the_trained_model_is_bit_equal_to_one_whose_router_losses_were_attached_with_one():
    found = []
    for watched in (True, False):
        model = model_with(0.5, 0.1)
        if not watched:
            model._forward_hooks.clear()
        once(model)
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][name]) for name, gradient in found[0].items())


@pytest.mark.parametrize("items", [None, 0, 40])
def test_a_batch_without_labels_is_finite(items):
    model = model_with(0.5, 0.1)
    given = batch(model)
    given["labels"][:] = -100
    more = {} if items is None else {"num_items_in_batch": torch.tensor(items)}
    loss = model(**given, **more).loss
    loss.backward()
    assert loss.item() == 0.0
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("shape", [(0, 7, 32), (3, 0, 32)])
def test_a_layer_without_tokens_is_finite(shape):
    block = one_block(TERNARY).train()
    block.balance_loss, block.z_loss = 0.5, 0.1
    y = block(torch.zeros(shape, requires_grad=True))
    y.sum().backward()
    assert y.shape == shape
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())


def test_a_loss_that_is_not_finite_stays_so():
    model = model_with(0.5, 0.1)
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    assert model(**batch(model)).loss.isnan()


def test_evaluation_and_outputs_of_strangers_are_left_alone():
    model = model_with(0.5, 0.0)
    hook = next(iter(model._forward_hooks.values()))
    odd = ModelOutput(hidden=torch.ones(2, requires_grad=True))
    assert hook(model, (), {"labels": torch.ones(2)}, odd) is odd
    before = logits(model)
    assert model.eval()(**batch(model)).loss.grad_fn.name() != "_FeltBackward"
    assert torch.equal(logits(copy.deepcopy(model)), before)
    assert len({id(block.pulls) for block in blocks(model).values()}) == 1
