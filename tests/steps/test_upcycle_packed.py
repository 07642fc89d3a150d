"""A base that is quantized already: its feed-forward stays to the byte, experts start from what it stands for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainingArguments

import mote_quant
from mote_quant.anatomy.feedforward import find_feedforwards, verify
from mote_quant.errors import FormatError, TargetError, UnsupportedModelError
from mote_quant.export import gptq
from mote_quant.hf.structure import replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import blocks
from mote_quant.planning import plan
from mote_quant.recipe.schema import CodebookBits, IntegerBits
from mote_quant.steps.quantize.methods.codebook import codebook
from tests.foreign import MIXTURE, Grown, grow, packed_layers, packed_model, start_fresh, write_as
from tests.mixtures import TERNARY, bits_of, logits, recipe, reloaded, upcycled
from tests.sources import source_for
from tests.stopping import StopError

INT4 = IntegerBits(format="int4", group_size=32)
FAMILIES = ["llama", "qwen2", "gpt2", "opt", "llava"]
QUIET = {"noise": 0.0, "router_std": 0.3}


def names_of_linears(model: Any) -> list[str]:
    return [f"{block.path}.{name}" for block in find_feedforwards(model) for name in block.linears.values()]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shared_expert_is_the_very_same_layers(family):
    model = packed_model(family, INT4)
    before = [model.get_submodule(name) for name in names_of_linears(model)]
    bytes_before = [bits_of(layer.state_dict()) for layer in before]
    upcycled(model, TERNARY, **QUIET)
    shared = [m for b in blocks(model).values() for m in b.shared_expert.modules() if isinstance(m, PackedLinear)]
    assert {id(layer) for layer in shared} == {id(layer) for layer in before}
    for layer, state in zip(before, bytes_before, strict=True):
        assert all(torch.equal(layer.state_dict()[key], tensor) for key, tensor in state.items())
    assert len(packed_layers(model)) == len(packed_layers(packed_model(family, INT4)))


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_start_from_the_dequantized_weights(family):
    model = packed_model(family, INT4)
    found = find_feedforwards(model)
    weights = [model.get_submodule(f"{block.path}.{block.down}").dequantize() for block in found]
    upcycled(model, TERNARY, **QUIET)
    for block, weight in zip(blocks(model).values(), weights, strict=True):
        for expert in block.experts:
            assert torch.equal(expert.down_proj.weight, weight)
            assert all(p.requires_grad for p in expert.parameters())
        assert block.gate.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_full_precision_experts_take_the_type_of_the_model(dtype):
    model = packed_model("llama", INT4, dtype=dtype)
    upcycled(model, combine="convex", noise=0.0)
    experts = {p.dtype for block in blocks(model).values() for p in block.experts.parameters()}
    assert experts == {dtype}


def test_convex_copies_are_the_packed_model():
    model = packed_model("llama", INT4)
    context = upcycled(model, combine="convex", noise=0.0)
    assert context.notes["preservation"]["relative"] < 1e-5


def test_zero_init_leaves_the_logits_exactly_as_they_were():
    model = packed_model("llava", INT4)
    before = logits(model)
    upcycled(model, TERNARY, combine="zero_init")
    assert torch.equal(logits(model), before)


def test_a_packed_block_that_computes_something_else_is_told():
    class Doubled(torch.nn.Module):
        def __init__(self, block: torch.nn.Module) -> None:
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = block.gate_proj, block.up_proj, block.down_proj
            self.act_fn = block.act_fn

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    model = packed_model("llama", INT4)
    block = find_feedforwards(model)[0]
    verify(model, block)
    replace_module(model, block.path, Doubled(model.get_submodule(block.path)))
    with pytest.raises(UnsupportedModelError, match=r"off by 100\.0%"):
        verify(model, block)


def test_the_gate_is_found_among_packed_layers():
    model = packed_model("llama", INT4)

    class Exchanged(type(model.model.layers[0].mlp)):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.down_proj(self.act_fn(self.up_proj(x)) * self.gate_proj(x))

    model.model.layers[0].mlp.__class__ = Exchanged
    found = find_feedforwards(model)
    assert (found[0].gate, found[0].up) == ("up_proj", "gate_proj")
    assert (found[1].gate, found[1].up) == ("gate_proj", "up_proj")


@pytest.mark.parametrize("rule", ["shared", "attention", "ffn"])
def test_a_rule_for_what_is_packed_already_is_an_error(rule):
    model = packed_model("llama", INT4)
    layers = "every_other" if rule == "ffn" else "all"
    made = recipe(TERNARY | {rule: "int8"}, layers=layers)
    with pytest.raises(FormatError, match=rf"bits\.{rule}: .*, packed already\) cannot be int8; .*leave the rule out"):
        plan(made, model)


def test_what_is_packed_cannot_be_trained():
    made = recipe(TERNARY, train={"what": ["routed", "shared"]})
    with pytest.raises(TargetError, match="shared matches only packed weights"):
        plan(made, packed_model("llama", INT4))


def test_a_plan_weighs_it_as_it_will_be_stored(tmp_path):
    model = packed_model("llama", INT4)
    planned = mote_quant.plan(MIXTURE, model)
    assert planned.result.roles["shared"].bits == pytest.approx(4.5)
    mote_quant.apply(MIXTURE, model, data=source_for(model), output=tmp_path)
    assert mote_quant.inspect(tmp_path)["stored_bytes"] == planned.result.stored_bytes


def test_any_trainer_takes_it(tmp_path):
    model = packed_model("llama", INT4)
    upcycled(model, TERNARY, combine="convex")
    frozen = {name: bits_of(layer.state_dict()) for name, layer in packed_layers(model).items()}
    first = next(iter(blocks(model).values())).experts[0].down_proj.weight
    before, source = first.detach().clone(), source_for(model)
    options = TrainingArguments(str(tmp_path), max_steps=2, learning_rate=0.05, report_to=[], use_cpu=True)
    Trainer(model, options, train_dataset=list(source.train), data_collator=source.collate).train()
    assert not torch.equal(first, before)
    for name, state in frozen.items():
        assert all(torch.equal(packed_layers(model)[name].state_dict()[key], t) for key, t in state.items())


def test_half_way_it_saves_its_latents_and_goes_on(tmp_path):
    model = packed_model("qwen2", INT4)
    upcycled(model, TERNARY, **QUIET)
    again = reloaded(model, tmp_path, latent=True)
    assert torch.equal(logits(again), logits(model))
    assert next(iter(blocks(again).values())).experts[0].up_proj.weight.requires_grad


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    whole = packed_model("llama", INT4)
    mote_quant.apply(MIXTURE, whole, data=source_for(whole))
    stopped = packed_model("llama", INT4)
    with monkeypatch.context() as patch:

        def stop(*args: Any) -> None:
            raise StopError

        patch.setitem(mote_quant.steps.RUN, "quantize", stop)
        with pytest.raises(StopError):
            mote_quant.apply(MIXTURE, stopped, data=source_for(stopped), output=tmp_path)
    again = packed_model("llama", INT4)
    mote_quant.apply(MIXTURE, again, data=source_for(again), output=tmp_path)
    assert '"resumed"' in (tmp_path / "run" / "journal.jsonl").read_text()
    assert torch.equal(logits(again), logits(whole))


def codebook_model(family: str) -> Any:
    """As `packed_model`, in nf4 with quantized scales."""
    model, spec = packed_model(family, INT4), CodebookBits(format="nf4", double_quant=True)
    for name, layer in packed_layers(model).items():
        weight = layer.dequantize()
        replace_module(model, name, PackedLinear.pack(spec, codebook(weight, spec), layer.bias, weight.dtype))
    return model


BASES = {
    "gptq": ("llama", INT4),
    "gptq_v2": ("qwen2", INT4.model_copy(update={"symmetric": False})),
    "awq": ("llava", INT4),
    "compressed-tensors": ("llama", INT4),
    "int-quantized": ("opt", IntegerBits(format="int8")),
    "our exporter": ("qwen2", INT4),
    "our own": ("gpt2", INT4),
    "nf4": ("llama", None),
}


def base(kind: str, folder: Path) -> Any:
    """A packed base of each kind, through files."""
    family, spec = BASES[kind]
    model = codebook_model(family) if spec is None else packed_model(family, spec)
    if kind == "our exporter":
        gptq.export(model, folder)
    elif kind in ("our own", "nf4"):
        model.save_pretrained(folder)
    else:
        write_as(kind, model, folder)
    return mote_quant.load_model(folder)


@pytest.fixture(scope="module")
def grown(tmp_path_factory) -> dict[str, Grown]:
    """Every base made a mixture, trained and saved; one fresh process has loaded them all."""
    folder = tmp_path_factory.mktemp("packed")
    made = {kind: grow(base(kind, folder / "bases" / kind), folder / "out" / kind) for kind in BASES}
    start_fresh(folder / "out")
    return made


@pytest.mark.parametrize("kind", BASES)
def test_from_a_quantized_base_to_a_mixture_in_a_fresh_process(grown, kind):
    grown[kind].check()


def test_a_base_in_one_form_gives_the_mixture_of_another(grown):
    assert torch.equal(grown["gptq"].logits, grown["compressed-tensors"].logits)
