"""`train: {compile: true}`: the same training, and the same model afterwards."""

from __future__ import annotations

import pytest
import torch

from mote_quant import pipeline
from mote_quant.errors import MissingExtraError, RecipeError, RequestError
from mote_quant.moe import blocks
from mote_quant.moe import trained as fused_experts
from mote_quant.recipe import load
from mote_quant.steps.train import compiling
from tests import pico
from tests.mixtures import TERNARY, TRAIN, bits_of, tensors_in, train_it, upcycled
from tests.sources import source_for

# torch's own, of what it calls itself as it compiles.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def traced(monkeypatch):
    """Everything of torch.compile but the C++ compiler."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")


def trained(compile: bool, **settings):
    """A mixture of one layer after a few steps, and the notes."""
    model = pico.PICO["llama"](layers=1)
    context = upcycled(model, TERNARY, experts=2)
    train_it(model, context, what=["*"], compile=compile, warmup=0.0, **settings)
    return model, context.notes


def assert_left_as_it_was(model) -> None:
    for module in model.modules():
        assert module._compiled_call_impl is None
        assert "forward" not in module.__dict__ or module is model, "accelerate's own, for bfloat16"
    assert not any("_orig_mod" in name for name in model.state_dict())


def test_the_same_training(traced, tmp_path, monkeypatch):
    compiled_parts = []
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, original=torch.nn.Module.compile, **k: (compiled_parts.append(self), original(self, **k)),
    )
    plain, notes = trained(False, steps=1)
    assert "compile" not in notes
    assert compiled_parts == []
    quick, found = trained(True, steps=1)
    assert found["compile"] is True
    block = next(iter(blocks(quick).values()))
    assert compiled_parts == [quick, block.shared_expert, *block.experts]
    assert [point["loss"] for point in found["curve"]] == pytest.approx([point["loss"] for point in notes["curve"]])
    before = bits_of(plain.state_dict())
    for name, tensor in quick.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=1e-5)
    assert_left_as_it_was(quick)
    quick.save_pretrained(tmp_path / "quick")
    plain.save_pretrained(tmp_path / "plain")
    assert tensors_in(tmp_path / "quick").keys() == tensors_in(tmp_path / "plain").keys()


def test_experts_on_a_cpu_run_compiled_and_not_fused(traced, monkeypatch):
    fused = []
    original = fused_experts._run
    monkeypatch.setattr(
        fused_experts, "_run", lambda network, x: (fused.append(network is not None), original(network, x))[1]
    )
    model = pico.PICO["llama"](layers=1)
    context = upcycled(model, TERNARY, experts=2)
    fused.clear()
    train_it(model, context, compile=True, steps=1)
    assert not any(fused)
    train_it(model, context, compile=False, steps=1)
    assert any(fused)


def test_what_torch_cannot_compile_is_our_error_and_leaves_the_model_whole(monkeypatch):
    def broken(graph, inputs):
        raise ValueError("no such kernel")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    model = pico.PICO["llama"](layers=1)
    context = upcycled(model, TERNARY)
    with pytest.raises(RequestError, match=r"torch\.compile failed on this model: .*; leave train\.compile out"):
        train_it(model, context, compile=True)
    assert_left_as_it_was(model)
    assert model(**pico.inputs(model)).loss.isfinite()


def test_a_missing_compiler_is_named_before_anything_is_trained(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = pico.PICO["llama"]()
    recipe = {"name": "quick", "pipeline": [{"train": TRAIN | {"what": ["*"], "compile": True}}]}
    with pytest.raises(MissingExtraError, match=r"needs a C\+\+ compiler, and no-such-compiler is not there"):
        pipeline.apply(recipe, model, data=source_for(model), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("key", "words"), [("compil", "did you mean compile"), ("torch_compile", "mean compile")])
def test_slips(key, words):
    with pytest.raises(RecipeError, match=words):
        load({"name": "quick", "pipeline": [{"train": TRAIN | {key: True}}]})


@pytest.mark.slow
def test_with_the_compiler_the_losses_are_the_same_up_to_rounding():
    (_, notes), (quick, found) = (trained(value, steps=4) for value in (False, True))
    losses = [[point["loss"] for point in each["curve"]] for each in (notes, found)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert_left_as_it_was(quick)
