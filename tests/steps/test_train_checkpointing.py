"""`gradient_checkpointing: true`: the same training in less memory, and each weight quantized once a step."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from mote_quant.errors import RequestError
from mote_quant.planning import plan
from mote_quant.qat import fake
from mote_quant.qat.latent import Latent
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe import load
from mote_quant.steps.train import callbacks, compiling
from tests import pico
from tests.mixtures import TERNARY, TRAIN, bits_of, context_for, recipe, train_it, upcycled
from tests.sources import source_for

train_module = import_module("mote_quant.steps.train.run")
FLAGS = ("gradient_checkpointing", "_gradient_checkpointing_func", "_require_grads_hook", "_require_grads_hooks")


def ready(family: str = "llama", bits=TERNARY, **more):
    """A model with experts to train, and its context."""
    model = (pico.PICO | pico.NATIVE_MOE)[family](**more)
    if family not in pico.NATIVE_MOE:
        return model, upcycled(model, bits)
    return model, context_for(load({"name": "native", "bits": bits, "pipeline": [{"train": TRAIN}]}), model)


def trained(checkpointing: bool, bits=TERNARY, family: str = "llama", builds=None, **settings):
    """A model after two steps of a training, and its notes."""
    model, context = ready(family, bits, **(builds or {}))
    settings = {"steps": 2, "warmup": 0.0, "learning_rate": 1e-2} | settings
    train_it(model, context, gradient_checkpointing=checkpointing, **settings)
    return model, context.notes


CASES = {
    "experts and router": {},
    "all of it": {"what": ["*"]},
    "dropout": {"family": "gpt2", "builds": {"resid_pdrop": 0.3, "attn_pdrop": 0.2}, "what": ["*"]},
    "learned scales": {"bits": {"routed": {"format": "ternary", "scales": "learned"}}, "what": ["*"]},
    "experts it came with": {"family": "qwen2_moe", "what": ["*"]},
    "integers": {"bits": {"routed": {"format": "int4", "method": "qat", "group_size": 16}}},
    "a ramp": {"ternary_ramp": 0.7},
    "accumulated": {"gradient_accumulation": 2, "latents": "bfloat16"},
    "autocast": {"precision": "bfloat16", "latents": "bfloat16", "what": ["*"]},
    "images": {"family": "llava"},
}


@pytest.mark.parametrize("case", CASES)
def test_losses_and_weights_are_those_of_a_run_without(case):
    (once, first), (twice, second) = (trained(on, **CASES[case]) for on in (False, True))
    assert second["curve"] == first["curve"]
    assert second["routing"] == first["routing"]
    after = bits_of(once.state_dict())
    assert all(torch.equal(tensor, after[name]) for name, tensor in twice.state_dict().items())


@pytest.fixture
def quantized(monkeypatch) -> list[int]:
    """The data pointer of every weight that is quantized in training, as often as it is."""
    found: list[int] = []
    make, rounded = Latent.of.__func__, fake.rounded_weight

    def counted(cls, weight, *others):
        found.append(weight.data_ptr())
        return make(cls, weight, *others)

    def also_counted(weight, *others):
        found.append(weight.data_ptr())
        return rounded(weight, *others)

    monkeypatch.setattr(Latent, "of", classmethod(counted))
    monkeypatch.setattr(fake, "rounded_weight", also_counted)
    return found


@pytest.mark.parametrize(("family", "accumulation"), [("llama", 1), ("llama", 2), ("qwen2_moe", 2)])
def test_each_weight_is_quantized_once_a_step(quantized, family, accumulation):
    model, context = ready(family)
    quantized.clear()
    settings = {"steps": 1, "batch_size": 8, "gradient_accumulation": accumulation}
    train_it(model, context, what=["*"], gradient_checkpointing=True, **settings)
    latent = [module for module in model.modules() if isinstance(module, QatLinear)]
    assert len(quantized) == len(set(quantized)) == len(latent)


def test_without_what_is_kept_they_would_be_quantized_twice(quantized, monkeypatch):
    monkeypatch.setattr(callbacks.Accumulation, "on_step_begin", lambda self, *others, **more: None)
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    quantized.clear()
    train_it(model, context, steps=1, batch_size=8, gradient_checkpointing=True)
    assert len(quantized) == 2 * len(set(quantized))


def peak(checkpointing: bool) -> int:
    """The most bytes that torch had allocated at once in a step, beyond those at its start."""
    model = pico.PICO["llama"](layers=6)
    context = upcycled(model, TERNARY, experts=2)
    profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    class Measured(train_module.Watch):
        def on_step_begin(self, args, state, control, **kwargs):
            profiler.start()

        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            profiler.stop()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "Watch", Measured)
        source = source_for(model, samples=64)
        context.open_data = lambda name, length: source
        train_it(model, context, steps=1, batch_size=64, gradient_checkpointing=checkpointing)
    held, highest = 0, 0
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        highest = max(highest, held)
    return highest


def test_it_takes_less_memory():
    without, with_it = peak(False), peak(True)
    assert with_it < 0.6 * without


def test_the_model_is_left_as_it_was_found():
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    hooks = len(model.get_input_embeddings()._forward_hooks)
    train_it(model, context, gradient_checkpointing=True)
    assert not any(name in vars(module) and vars(module)[name] for module in model.modules() for name in FLAGS)
    assert not model.model.gradient_checkpointing
    assert len(model.get_input_embeddings()._forward_hooks) == hooks
    assert model.config.use_cache is True


def test_a_model_that_had_it_keeps_its_own():
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    before = [{name: vars(module).get(name) for name in FLAGS} for module in model.modules()]
    hooks = dict(model.get_input_embeddings()._forward_hooks)
    train_it(model, context, gradient_checkpointing=True)
    assert [{name: vars(module).get(name) for name in FLAGS} for module in model.modules()] == before
    assert dict(model.get_input_embeddings()._forward_hooks) == hooks
    assert hooks


def test_only_inside_and_only_where_asked(monkeypatch):
    seen: list[bool] = []

    class Spy(train_module.Watch):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            seen.append(all(layer.gradient_checkpointing for layer in model.model.layers))
            assert not getattr(model, "_require_grads_hooks", None)
            super().on_step_end(args, state, control, **kwargs)

    monkeypatch.setattr(train_module, "Watch", Spy)
    trained(True)
    trained(False)
    assert seen == [True] * 2 + [False] * 2


def test_a_model_without_support_is_refused_by_name(monkeypatch):
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    message = "train.gradient_checkpointing: LlamaForCausalLM does not support it"
    with pytest.raises(RequestError, match=message):
        train_it(model, context, gradient_checkpointing=True)
    with pytest.raises(RequestError, match=message):
        plan(recipe(TERNARY, {"gradient_checkpointing": True}), pico.PICO["llama"]())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_it_goes_with_torch_compile(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    losses = []
    for on in (False, True):
        model = pico.PICO["llama"](layers=1)
        context = upcycled(model, TERNARY, experts=2)
        train_it(model, context, compile=True, gradient_checkpointing=on)
        losses.append([entry["loss"] for entry in context.notes["curve"]])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
