"""Which AdamW moves the weights, in which types, and that a checkpoint holds all of it."""

from __future__ import annotations

import dataclasses
import json
import resource
from functools import cache
from importlib import import_module

import pytest
import torch
from torch import Tensor, nn

from mote_quant import admission, pipeline
from mote_quant.errors import MissingExtraError, ModelError, RequestError, SaveError
from mote_quant.hf import checkpoint
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import blocks
from mote_quant.qat.linear import QatLinear
from mote_quant.ranks import Ranks
from mote_quant.recipe.schema import Train
from mote_quant.steps.base import Silent
from mote_quant.steps.train import libraries, session
from mote_quant.steps.train.optimizer import build_optimizer
from tests import pico
from tests.mixtures import TERNARY, bits_of, logits, quantize_it, recipe, train_it, upcycled
from tests.sources import source_for
from tests.stopping import Stop, StopError

train_module = import_module("mote_quant.steps.train.run")
HALF = {"latents": "bfloat16", "warmup": 0.0}
LEARNED = {"routed": {"format": "ternary", "scales": "learned"}}


def settings_of(**settings) -> Train:
    return Train(what=["*"], data="pico", steps=2, **settings)


class Net(nn.Module):
    """A matrix of odd size, a vector, and one that gets no gradient."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.randn(37, 53, generator=generator).to(dtype))
        self.vector = nn.Parameter(torch.randn(53, generator=generator))
        self.idle = nn.Parameter(torch.ones(3))

    def groups(self) -> list[dict]:
        return [{"params": [self.matrix], "weight_decay": 0.1, "lr": 3e-3}, {"params": [self.vector, self.idle]}]

    def gradients(self, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for parameter in (self.matrix, self.vector):
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def stepped(net: Net, optimizer: torch.optim.Optimizer, steps: range) -> dict[str, Tensor]:
    for step in steps:
        net.gradients(step)
        optimizer.param_groups[1]["lr"] = 1e-3 / (step + 1)
        optimizer.step()
    return bits_of(net.state_dict())


def built(net: Net, **settings) -> torch.optim.Optimizer:
    return build_optimizer(net.groups(), settings_of(**settings), net, seed=5)


def test_in_float32_it_is_torch_s_bit_for_bit():
    ours, theirs = Net(), Net()
    # `latents` only says that the weights may be bfloat16: these are not.
    found = stepped(ours, built(ours, latents="bfloat16"), range(5))
    expected = stepped(theirs, built(theirs), range(5))
    assert isinstance(built(theirs), torch.optim.AdamW)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(found["idle"], torch.ones(3))


def test_a_bfloat16_step_is_the_float32_step_rounded_to_a_neighbour():
    net, wide = Net(torch.bfloat16), Net(torch.bfloat16)
    wide.matrix.data = wide.matrix.data.float()
    optimizer = built(net, latents="bfloat16")
    found = stepped(net, optimizer, range(1))["matrix"]
    net.gradients(0)
    wide.matrix.grad = net.matrix.grad.float()
    exact = wide.matrix.detach().clone()
    torch.optim.AdamW(wide.groups()[:1], fused=True).step()
    exact = wide.matrix.detach()
    unit = 2.0 ** (exact.abs().log2().floor() - 7)
    assert found.dtype == torch.bfloat16
    assert ((found.float() - exact).abs() < unit).all()
    assert 0.2 < (found != exact.bfloat16()).float().mean() < 0.6
    assert optimizer.state[net.matrix]["exp_avg"].dtype == torch.float32


def test_updates_below_half_a_unit_add_up():
    net = Net(torch.bfloat16)
    net.matrix.data.fill_(1.0)
    optimizer = build_optimizer([{"params": [net.matrix]}], settings_of(**HALF, learning_rate=2e-4), net, seed=0)
    for _ in range(50):
        net.matrix.grad = torch.ones_like(net.matrix)
        optimizer.step()
    # Each step is a twentieth of the distance between bfloat16 numbers below 1.
    assert float(net.matrix.detach().float().mean()) == pytest.approx(0.99, abs=1e-3)


@pytest.mark.parametrize("gradient_too", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_parameter_that_lies_the_other_way_round_is_moved_too(dtype, gradient_too):
    straight, turned = Net(dtype), Net(dtype)
    turned.matrix.data = turned.matrix.data.t().contiguous().t()
    assert not turned.matrix.is_contiguous()
    if gradient_too:
        # As autograd lays gradients out.
        turned.gradients = lambda step: transposed_gradients(turned, step)
    expected, found = (stepped(net, built(net, latents="bfloat16"), range(2)) for net in (straight, turned))
    assert torch.equal(found["matrix"], expected["matrix"])


def transposed_gradients(net: Net, step: int) -> None:
    Net.gradients(net, step)
    net.matrix.grad = net.matrix.grad.t().contiguous().t()


def test_every_step_is_noticed_by_autograd():
    net = Net(torch.bfloat16)
    optimizer = built(net, latents="bfloat16")
    before = net.matrix._version, net.vector._version
    stepped(net, optimizer, range(1))
    assert net.matrix._version > before[0]
    assert net.vector._version > before[1]


def test_its_state_is_saved_and_loaded_as_it_is():
    whole, first, second = (Net(torch.bfloat16) for _ in range(3))
    expected = stepped(whole, built(whole, latents="bfloat16"), range(4))
    optimizer = built(first, latents="bfloat16")
    stepped(first, optimizer, range(2))
    second.load_state_dict(first.state_dict())
    other = built(second, latents="bfloat16")
    other.load_state_dict(optimizer.state_dict())
    assert other.state[second.matrix]["exp_avg_sq"].dtype == torch.float32
    found = stepped(second, other, range(2, 4))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.fixture
def optimizers(monkeypatch):
    """Every optimizer that the train step builds, with the model it is for."""
    found = []

    def kept(groups, config, model, seed):
        found.append((build_optimizer(groups, config, model, seed), model))
        return found[-1][0]

    monkeypatch.setattr(session, "build_optimizer", kept)
    return found


@pytest.mark.parametrize(
    ("latents", "what"), [("float32", ["routed", "router"]), ("bfloat16", ["*.layers.1.*experts.2*"])]
)
def test_only_what_trains_has_a_state_or_a_gradient(optimizers, monkeypatch, latents, what):
    graded: set[str] = set()

    class Spy(train_module.Watch):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            graded.update(name for name, p in model.named_parameters() if p.grad is not None)

    monkeypatch.setattr(train_module, "Watch", Spy)
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    # First all of it, then a part: nothing is left over from what is frozen now.
    train_it(model, context, what=["*"], latents=latents)
    graded.clear()
    before = bits_of(model.state_dict())
    train_it(model, context, what=what, latents=latents, batch_size=8, warmup=0.0)
    optimizer, trained = optimizers[-1]
    stated = {name for name, p in trained.named_parameters() if p in optimizer.state}
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert moved <= stated == graded
    assert len(optimizer.state) == len(stated) < len(list(model.parameters()))
    layers = {"routed": "experts", "router": ".gate.", "*.layers.1.*experts.2*": "layers.1.mlp.experts.2"}
    assert all(any(layers[target] in name for target in what) for name in stated)


def types_inside(monkeypatch, model, context, **settings) -> dict[str, torch.dtype]:
    """The types of what trains while it trains."""
    found: dict[str, torch.dtype] = {}

    class Spy(train_module.Watch):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            found.update({name: p.dtype for name, p in model.named_parameters() if p.requires_grad})
            super().on_step_end(args, state, control, **kwargs)

    monkeypatch.setattr(train_module, "Watch", Spy)
    train_it(model, context, what=["*"], **HALF, **settings)
    return found


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_latents_are_held_in_two_bytes_and_routers_and_scales_are_not(monkeypatch, precision):
    model = pico.PICO["llama"]()
    context = upcycled(model, LEARNED)
    before = {name: p.dtype for name, p in model.named_parameters()}
    found = types_inside(monkeypatch, model, context, precision=precision)
    latent = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, QatLinear)}
    halved = {name for name, dtype in found.items() if dtype == torch.bfloat16}
    assert len(latent) == 24
    if precision == "float32":
        assert halved == latent
    else:
        assert halved > latent
        assert "model.layers.0.self_attn.q_proj.weight" in halved
    assert {name for name in found if "gate.weight" in name and "mlp.gate" in name}.isdisjoint(halved)
    assert not any(name.endswith((".weight_scale", "norm.weight")) for name in halved)
    assert {name: p.dtype for name, p in model.named_parameters()} == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("bits", [TERNARY, LEARNED], ids=["absmean", "learned"])
def test_bfloat16_latents_are_packed_to_the_codes_they_trained_with(monkeypatch, precision, bits):
    last: list[Tensor] = []
    model = pico.PICO["llama"]()
    context = upcycled(model, bits)

    class Spy(train_module.Watch):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            layers = [module for module in model.modules() if isinstance(module, QatLinear)]
            last[:] = [layer.latent().values(torch.float32) for layer in layers]
            super().on_step_end(args, state, control, **kwargs)

    monkeypatch.setattr(train_module, "Watch", Spy)
    train_it(model, context, **HALF, steps=4, learning_rate=1e-2, precision=precision)
    trained = logits(model)
    quantize_it(model, context)
    packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(packed) == 24
    assert all(torch.equal(layer.dequantize(), values) for layer, values in zip(packed, last, strict=True))
    close = 1e-5 if precision == "float32" else 0.1
    torch.testing.assert_close(logits(model), trained, rtol=0.0, atol=close)


def test_bfloat16_latents_learn_and_a_ramp_ends_in_codes():
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    train_it(model, context, **HALF, steps=40, batch_size=8, learning_rate=1e-2, ternary_ramp=0.25)
    curve = context.notes["curve"]
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]


def test_latents_of_nothing_are_said_to_hold_nothing(caplog):
    model = pico.PICO["llama"]()
    train_it(model, upcycled(model, TERNARY), what=["router"], **HALF)
    assert "latents: bfloat16 holds nothing" in caplog.text


def run(folder, progress=None, **settings) -> tuple[dict[str, Tensor], list]:
    """A training from the start, or from a checkpoint in `folder`: the weights, and the losses on the way."""
    model = pico.PICO["gpt2"](resid_pdrop=0.2)
    context = upcycled(model, TERNARY)
    context = dataclasses.replace(context, folder=folder, progress=progress or Silent())
    train_it(model, context, **{"steps": 6, "checkpoint_every": 2, "learning_rate": 1e-2} | settings)
    return bits_of(model.state_dict()), context.notes["curve"]


@cache
def uninterrupted(settings: str) -> tuple[dict[str, Tensor], list]:
    return run(None, **json.loads(settings))


def check_resumes(tmp_path, stopped_by=StopError, progress=None, between=lambda: None, **settings) -> None:
    """A training interrupted after step 5 ends in the bits of one that was not."""
    whole, curve = uninterrupted(json.dumps(settings))
    with pytest.raises(stopped_by):
        run(tmp_path, progress or Stop("training", 5), **settings)
    between()
    assert checkpoint.latest(tmp_path) is not None
    found, again = run(tmp_path, **settings)
    assert all(torch.equal(found[name], whole[name]) for name in whole)
    assert again == curve


@pytest.mark.parametrize(
    "settings",
    [
        HALF,
        HALF | {"precision": "bfloat16", "what": ["*"], "weight_decay": 0.1},
        {"gradient_checkpointing": True, "gradient_accumulation": 2},
    ],
)
def test_a_resumed_training_rounds_as_an_uninterrupted_one(tmp_path, settings):
    check_resumes(tmp_path, **settings)


def test_another_seed_rounds_otherwise():
    found = []
    for seed in (0, 0, 1):
        net = Net(torch.bfloat16)
        optimizer = build_optimizer(net.groups(), settings_of(latents="bfloat16"), net, seed)
        found.append(stepped(net, optimizer, range(1))["matrix"])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


class Full(Silent):
    """From a step on, no file may grow beyond so many bytes, as if the disk were full."""

    def __init__(self, at: int, size: int) -> None:
        self._at, self._size = at, size

    def advance(self, done: int, **figures: float) -> None:
        if done == self._at:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self._size, resource.RLIM_INFINITY))


@pytest.mark.parametrize("size", [0, 3000, 100_000])
def test_a_full_disk_is_one_error_and_the_checkpoint_before_it_stays(tmp_path, size):
    def lifted() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]

    try:
        check_resumes(tmp_path, SaveError, Full(3, size), lifted, **HALF)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.parametrize(("optimizer", "extra"), [("adamw_bnb_8bit", "bnb"), ("adamw_torch_8bit", "torchao")])
def test_a_library_that_is_not_there_is_named(monkeypatch, optimizer, extra):
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    message = rf"optimizer: {optimizer} needs the extra {extra}: pip install 'mote-quant\[{extra}\]'"
    with pytest.raises(MissingExtraError, match=message):
        train_it(model, context, optimizer=optimizer)
    # And before anything is up-cycled.
    model = pico.PICO["llama"]()
    with pytest.raises(MissingExtraError, match=message):
        pipeline.apply(recipe(TERNARY, {"optimizer": optimizer}), model, data=source_for(model))
    assert not blocks(model)


@pytest.mark.parametrize("sharding", ["fsdp2", "ddp"])
def test_8_bit_states_and_shards_are_refused_before_anything_happens(monkeypatch, sharding):
    """Of several processes; what is not refused comes to the model, which is none here."""
    monkeypatch.setattr(admission, "ranks", lambda: Ranks(0, 2))
    made, options = recipe(TERNARY, {"optimizer": "adamw_bnb_8bit"}), pipeline.Options(sharding=sharding)
    wanted = RequestError if sharding == "fsdp2" else ModelError
    with pytest.raises(wanted, match="use adamw_torch with fsdp2" if sharding == "fsdp2" else "nowhere"):
        pipeline.apply(made, "/nowhere/at/all", options=options)
