from __future__ import annotations

import dataclasses
import json
import math
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file

from mote_quant import pipeline
from mote_quant.data.schedule import Schedule
from mote_quant.errors import DataError, TargetError, TrainingError
from mote_quant.hf import checkpoint
from mote_quant.hf.trainer import MoteTrainer
from mote_quant.moe import blocks
from mote_quant.steps.train.callbacks import Watch
from tests import pico
from tests.mixtures import TERNARY, bits_of, train_it, upcycled
from tests.routers import gradient_of_router
from tests.sources import source_for

train_module = import_module("mote_quant.steps.train.run")


@pytest.mark.parametrize("combine", ["additive", "convex", "zero_init"])
@pytest.mark.parametrize("family", ["qwen2", "llava"])
def test_only_what_is_named_moves_and_all_of_it_does(family, combine):
    model = pico.PICO[family]()
    context = upcycled(model, TERNARY, combine=combine)
    before = bits_of(model.state_dict())
    train_it(model, context, what=["routed", "router"], steps=4, batch_size=8, balance_loss=0.0, warmup=0.0)
    named = {
        f"{path}.{name}"
        for path, block in blocks(model).items()
        for name, _ in block.named_parameters()
        if name.startswith(("gate.", "experts."))
    }
    assert len(named) == 2 * (4 * 3 + (2 if combine == "zero_init" else 1))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == named
    assert set(context.notes["trained"]) == {"routed", "router"}
    assert {"attention", "shared", "norm", "embedding"} <= set(context.notes["frozen"])


@pytest.mark.parametrize("what", [["shared"], ["attention"], ["*.layers.1.*experts.2*"], ["re:lm_head"]])
def test_any_target_can_be_trained_alone(what):
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    before = bits_of(model.state_dict())
    train_it(model, context, what=what, warmup=0.0)
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    part = {"shared": "shared_expert", "attention": "self_attn", "re:lm_head": "lm_head"}.get(
        what[0], "layers.1.mlp.experts.2"
    )
    assert moved
    assert all(part in name for name in moved)


def test_flags_mode_random_state_and_gradients_are_left_as_found():
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    model.model.embed_tokens.weight.requires_grad_(False)
    flags, state = {n: p.requires_grad for n, p in model.named_parameters()}, torch.get_rng_state()
    train_it(model, context)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
    assert not torch.are_deterministic_algorithms_enabled()
    assert model.config.use_cache is True


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    found = []
    for seed in (0, 0, 1):
        model = pico.PICO["gpt2"](resid_pdrop=0.2)
        context = upcycled(model, TERNARY)
        torch.manual_seed(len(found))  # what the caller's random state is must not matter
        train_it(model, dataclasses.replace(context, seed=seed))
        found.append(bits_of(model.state_dict()))
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_the_loss_goes_down():
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    train_it(model, context, steps=40, batch_size=8, learning_rate=1e-2)
    curve = context.notes["curve"]
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    assert context.notes["tokens"] == 40 * 8 * 9
    assert {"load", "balance", "entropy"} == set(next(iter(context.notes["routing"].values())))
    assert sum(next(iter(context.notes["routing"].values()))["load"]) == pytest.approx(1.0, abs=1e-5)


def test_a_balance_loss_balances():
    loads = []
    for weight in (0.0, 5.0):
        model = pico.PICO["llama"]()
        context = upcycled(model, TERNARY, router_std=1.5)
        train_it(model, context, what=["router"], steps=40, batch_size=8, learning_rate=5e-2, balance_loss=weight)
        loads.append(sum(layer["balance"] for layer in context.notes["routing"].values()))
    assert loads[1] < loads[0] - 0.1


@pytest.mark.parametrize("loss", ["balance_loss", "z_loss"])
def test_accumulation_gives_router_losses_the_same_total_weight(monkeypatch, loss):
    off = {"balance_loss": 0.0, "z_loss": 0.0}

    def share(**settings) -> torch.Tensor:
        with_it = gradient_of_router(monkeypatch, **(off | {loss: 1.0}), **settings)
        return with_it - gradient_of_router(monkeypatch, **off, **settings)

    once = share(batch_size=2, gradient_accumulation=1)
    assert once.norm() > 1e-3
    torch.testing.assert_close(share(batch_size=2, gradient_accumulation=4), once, rtol=1e-3, atol=1e-5)


def test_accumulation_gives_the_language_loss_the_same_gradient(monkeypatch):
    once, many = (
        gradient_of_router(monkeypatch, balance_loss=0.0, batch_size=4 // n, gradient_accumulation=n) for n in (1, 4)
    )
    torch.testing.assert_close(many, once, rtol=1e-3, atol=1e-6)


def test_the_ramp_starts_at_full_precision_and_ends_ternary(monkeypatch):
    seen: list[float] = []

    class Spy(Watch):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            seen.append(next(iter(blocks(model).values())).experts[0].up_proj.strength)

    monkeypatch.setattr(train_module, "Watch", lambda model, progress: Spy(model, progress))
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    train_it(model, context, steps=8, ternary_ramp=0.5)
    # The spy stands before the ramp, so it sees what the step before was given.
    assert seen == [1.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert next(iter(blocks(model).values())).experts[0].up_proj.strength == 1.0


def test_bfloat16_precision_trains_float32_latents():
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    before = bits_of(model.state_dict())
    train_it(model, context, precision="bfloat16", warmup=0.0)
    weight = next(name for name in before if "experts.0.up" in name)
    assert model.state_dict()[weight].dtype == torch.float32
    assert not torch.equal(model.state_dict()[weight], before[weight])


def test_a_dense_model_can_be_trained_too():
    model = pico.PICO["llama"]()
    context = upcycled(pico.PICO["llama"]())
    before = bits_of(model.state_dict())
    train_it(model, context, what=["*"], warmup=0.0)
    assert all(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert getattr(model, "hf_quantizer", None) is None


def test_no_samples():
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    source = dataclasses.replace(source_for(model), train=[])
    context.open_data = lambda name, length: source
    with pytest.raises(DataError, match="pico has no training samples"):
        train_it(model, context)


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_a_whole_model():
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) after step 1: lower learning_rate"):
        train_it(model, context, steps=5, learning_rate=1e30, max_grad_norm=1e30, ternary_ramp=1.0, warmup=0.0)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    layers = [m for m in model.modules() if hasattr(m, "strength")]
    assert {layer.strength for layer in layers} == {1.0}


def test_targets_that_cannot_be_trained():
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    with pytest.raises(TargetError, match="routd"):
        train_it(model, context, what=["routd"])


def test_schedule_is_whole_epochs_in_a_seeded_order():
    first, again, other = (list(Schedule(range(5), 12, seed)) for seed in (0, 0, 1))
    assert first == again != other
    assert sorted(first[:5]) == sorted(first[5:10]) == list(range(5))
    assert len(first) == 12


def test_notes_are_json():
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    train_it(model, context)
    assert json.loads(json.dumps(context.notes))


@pytest.mark.parametrize("step", [3, 5])
def test_a_gradient_that_is_not_finite_moves_nothing(monkeypatch, tmp_path, step):
    """Under a loss that is: the checkpoint from before is good, and nothing is saved after the last step (5)."""
    plain = MoteTrainer.training_step

    def poisoned(self, model, *given, **named):
        loss = plain(self, model, *given, **named)
        if self.state.global_step == step:
            next(p.grad for p in model.parameters() if p.grad is not None)[0] = math.inf
        return loss

    monkeypatch.setattr(MoteTrainer, "training_step", poisoned)
    train = {"what": ["routed", "router"], "data": "pico", "steps": 6, "batch_size": 2, "checkpoint_every": 2}
    made = {"name": "x", "bits": TERNARY, "pipeline": [{"upcycle": {}}, {"train": train}, {"quantize": {}}]}
    model = pico.PICO["llama"]()
    with pytest.raises(TrainingError, match=f"the gradient is not finite after step {step}: lower learning_rate"):
        pipeline.apply(made, model, data=source_for(model), output=tmp_path)
    found = checkpoint.latest(tmp_path / "run" / "steps" / "2-train")
    assert found is not None
    assert found.name == f"checkpoint-{step - 1}"
    kept = [tensor for path in found.glob("*.safetensors") for tensor in load_file(path).values()]
    assert kept
    assert all(torch.isfinite(tensor).all() for tensor in kept)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values() if tensor.is_floating_point())
    assert not (tmp_path / "model.safetensors").exists()
