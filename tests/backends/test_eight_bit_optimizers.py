"""AdamW with 8-bit states: bitsandbytes' and torchao's, on float32 and on bfloat16 weights, through checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mote_quant.hf import checkpoint
from mote_quant.recipe.schema import Train
from mote_quant.steps.base import Silent
from mote_quant.steps.train.optimizer import build_optimizer
from tests import pico
from tests.mixtures import TERNARY, bits_of, train_it, upcycled
from tests.stopping import Stop, StopError

session = import_module("mote_quant.steps.train.session")
SIZES = {"hidden": 64, "ffn": 128, "layers": 1}
"""Large enough for states in 8 bits."""


def installed(optimizer: str, library: str) -> Any:
    absent = pytest.mark.skipif(find_spec(library) is None, reason=f"{library} is not installed")
    return pytest.param(optimizer, marks=absent)


OPTIMIZERS = [installed("adamw_bnb_8bit", "bitsandbytes"), installed("adamw_torch_8bit", "torchao")]
pytestmark = pytest.mark.parametrize("optimizer", OPTIMIZERS)


class Net(nn.Module):
    """A matrix with states in 8 bits, and a vector too short for them."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(64, 256, generator=torch.Generator().manual_seed(0)).to(dtype))
        self.vector = nn.Parameter(torch.ones(64))

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.matrix], "lr": 2e-3, "weight_decay": 0.1}, {"params": [self.vector]}]

    def optimizer(self, name: str) -> torch.optim.Optimizer:
        config = Train(what=["*"], data="pico", steps=2, optimizer=name, latents="bfloat16")
        return build_optimizer(self.groups(), config, self, seed=0)

    def stepped(self, optimizer: torch.optim.Optimizer, steps: range) -> dict[str, Tensor]:
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for parameter in self.parameters():
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
            optimizer.step()
        return bits_of(self.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_costs_a_quarter_of_the_states_in_float32(optimizer: str, dtype: torch.dtype) -> None:
    net = Net(dtype)
    made = net.optimizer(optimizer)
    net.stepped(made, range(1))
    states = [value for value in made.state[net.matrix].values() if isinstance(value, Tensor) and value.dim()]
    assert {type(state) for state in states} == {Tensor}
    assert sum(state.nbytes for state in states) / net.matrix.numel() == 2 + 2 * 4 / 256
    assert sum(v.nbytes for v in made.state[net.vector].values() if isinstance(v, Tensor) and v.dim()) == 64 * 8
    assert net.matrix.dtype == dtype


def test_it_moves_weights_as_adamw_does_with_each_group_s_own_settings(optimizer: str) -> None:
    ours, theirs = Net(), Net()
    found = ours.stepped(ours.optimizer(optimizer), range(10))
    exact = torch.optim.AdamW(theirs.groups(), weight_decay=0.0, fused=True)
    expected = theirs.stepped(exact, range(10))
    start = Net()
    for name, before in start.state_dict().items():
        moved = (expected[name] - before).norm()
        assert (found[name] - expected[name]).norm() < 0.1 * moved, name


def test_rates_may_change_between_steps(optimizer: str) -> None:
    net = Net()
    made = net.optimizer(optimizer)
    net.stepped(made, range(1))
    before = bits_of(net.state_dict())
    made.param_groups[0]["lr"] = 0.0
    after = net.stepped(made, range(1, 2))
    assert torch.equal(after["matrix"], before["matrix"])
    assert not torch.equal(after["vector"], before["vector"])


def test_autograd_notices_each_step(optimizer: str) -> None:
    net = Net()
    made = net.optimizer(optimizer)
    before = net.matrix._version
    net.stepped(made, range(1))
    assert net.matrix._version > before


def test_its_state_is_saved_and_loaded_as_it_is(optimizer: str) -> None:
    whole, first, second = (Net(torch.bfloat16) for _ in range(3))
    expected = whole.stepped(whole.optimizer(optimizer), range(4))
    made = first.optimizer(optimizer)
    first.stepped(made, range(2))
    second.load_state_dict(first.state_dict())
    other = second.optimizer(optimizer)
    other.load_state_dict(made.state_dict())
    found = second.stepped(other, range(2, 4))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def run(folder: Any, progress: Any = None, **settings: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    model = pico.PICO["llama"](**SIZES)
    context = dataclasses.replace(upcycled(model, TERNARY), folder=folder, progress=progress or Silent())
    train_it(model, context, **{"steps": 6, "checkpoint_every": 2, "learning_rate": 1e-2, "warmup": 0.0} | settings)
    return bits_of(model.state_dict()), context.notes


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.optim.Optimizer]]:
    """Every optimizer that the train step builds."""
    found: list[torch.optim.Optimizer] = []

    def kept(*arguments: Any) -> torch.optim.Optimizer:
        found.append(build_optimizer(*arguments))
        return found[-1]

    monkeypatch.setattr(session, "build_optimizer", kept)
    return found


@pytest.mark.parametrize("latents", ["float32", "bfloat16"])
def test_a_resumed_training_ends_in_the_same_bits(optimizer: str, latents: str, tmp_path: Any, states: Any) -> None:
    settings = {"optimizer": optimizer, "latents": latents}
    whole, notes = run(None, **settings)
    eight = [state for state in states[0].state.values() if any(v.dtype == torch.uint8 for v in tensors(state))]
    assert len(eight) == 4 * 3
    with pytest.raises(StopError):
        run(tmp_path, Stop("training", 5), **settings)
    assert checkpoint.latest(tmp_path) is not None
    found, again = run(tmp_path, **settings)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert again["curve"] == notes["curve"]


def tensors(state: dict[str, Any]) -> list[Tensor]:
    return [value for value in state.values() if isinstance(value, Tensor)]


def test_it_learns_as_well(optimizer: str) -> None:
    settings = {"steps": 40, "batch_size": 8, "learning_rate": 3e-3}
    (_, eight), (_, full) = (run(None, optimizer=name, **settings) for name in (optimizer, "adamw_torch"))
    first, last = (full["curve"][at]["loss"] for at in (0, -1))
    assert last < first
    assert abs(eight["curve"][-1]["loss"] - last) < 0.2 * (first - last)
