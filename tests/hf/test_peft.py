"""LoRA of PEFT on packed weights: it trains, it is saved and put on again, and the packed weights never move."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, Trainer, TrainingArguments

from mote_quant.errors import RequestError
from mote_quant.hf.adapters import PackedLora
from tests import pico
from tests.finished import finished
from tests.mixtures import TERNARY, bits_of, logits
from tests.rounding import assert_same_to_rounding
from tests.sources import source_for

# PEFT calls transformers by names that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

ATTENTION = ["q_proj", "v_proj"]
EVERYTHING = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def lora(targets=ATTENTION, **settings) -> LoraConfig:
    return LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **settings)


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def learn(model, steps: int = 6) -> list[float]:
    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=1e-2)
    given, losses = pico.inputs(model.get_base_model()), []
    for _ in range(steps):
        loss = model.train()(**given).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("targets", [ATTENTION, EVERYTHING, r".*experts\.\d+\.down_proj"])
def test_only_the_adapters_learn_and_come_back(targets, packed, tmp_path):
    base = load(packed)
    before, wanted = bits_of(base.state_dict()), logits(base)
    model = get_peft_model(base, lora(targets))
    assert any(isinstance(module, PackedLora) for module in model.modules())
    assert_same_to_rounding(logits(model), wanted)
    losses = learn(model)
    assert losses[-1] < losses[0] - 0.05
    trained = logits(model)
    assert (trained - wanted).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    assert torch.equal(logits(PeftModel.from_pretrained(load(packed), tmp_path)), trained)
    with model.disable_adapter():
        assert_same_to_rounding(logits(model), wanted)
    plain = model.unload()
    assert torch.equal(logits(plain), wanted)
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())


def test_packed_and_plain_layers_together_and_a_bfloat16_model():
    base = finished("qwen2", TERNARY | {"*.q_proj": "int4"}).bfloat16()
    model = get_peft_model(base, lora(["k_proj", "v_proj", "q_proj"]))
    kinds = {
        type(module).__name__ for name, module in model.named_modules() if name.endswith("_proj") and "attn" in name
    }
    assert {"PackedLora", "Linear"} <= kinds
    losses = learn(model)
    assert losses[-1] < losses[0]
    assert logits(model).dtype == torch.bfloat16


def test_checkpointed_it_learns_the_same(packed):
    plain, frugal = load(packed), prepare_model_for_kbit_training(load(packed))
    frugal.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    losses = []
    for base in (plain, frugal):
        torch.manual_seed(0)
        losses.append(learn(get_peft_model(base, lora(EVERYTHING)), steps=3))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert frugal.is_gradient_checkpointing


def test_through_a_vlm(packed_vlm):
    base = AutoModelForImageTextToText.from_pretrained(packed_vlm)
    losses = learn(get_peft_model(base, lora(r".*language_model.*(q|up)_proj")))
    assert losses[-1] < losses[0] - 0.05


def arguments(folder, **settings) -> TrainingArguments:
    fixed = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "report_to": []}
    fixed |= {"disable_tqdm": True, "use_cpu": True, "remove_unused_columns": False, "save_strategy": "steps"}
    return TrainingArguments(str(folder), **fixed, **settings)


def test_trainer_trains_saves_and_resumes_adapters_on_a_packed_model(packed, tmp_path):
    def train(steps: int, folder, resume=None):
        torch.manual_seed(0)
        model = get_peft_model(load(packed), lora())
        source = source_for(model.get_base_model())
        settings = arguments(folder, max_steps=steps, save_steps=2)
        trainer = Trainer(model, settings, data_collator=source.collate, train_dataset=list(source.train))
        trainer.train(resume_from_checkpoint=resume)
        return logits(model)

    whole = train(4, tmp_path / "whole")
    train(2, tmp_path / "cut")
    assert_same_to_rounding(train(4, tmp_path / "cut", str(tmp_path / "cut" / "checkpoint-2")), whole)
    assert torch.equal(logits(PeftModel.from_pretrained(load(packed), tmp_path / "whole/checkpoint-4")), whole)


def test_adapters_as_transformers_puts_them_on(packed, tmp_path):
    model = load(packed)
    model.add_adapter(lora(init_lora_weights="gaussian"))
    for module in model.modules():
        if isinstance(module, PackedLora):
            torch.nn.init.normal_(module.lora_B["default"].weight)
    wanted = logits(model)
    model.save_pretrained(tmp_path)
    assert "adapter_model.safetensors" in {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "config.json").exists()
    again = load(packed)
    again.load_adapter(str(tmp_path))
    assert torch.equal(logits(again), wanted)
    load(packed).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists(), "saving adapters is no reason to drop the model beside them"


def test_merging_is_refused_with_a_way_out(packed):
    model = get_peft_model(load(packed), lora())
    with pytest.raises(RequestError, match=r"cannot be merged into packed weights.*unload\(\)"):
        model.merge_and_unload()


def test_a_model_that_wears_adapters_is_not_saved_as_if_it_did_not(packed, tmp_path):
    model = get_peft_model(load(packed), lora())
    with pytest.raises(RequestError, match=r"wears adapters.*unload\(\)"):
        model.get_base_model().save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_latent_layers_are_plain_ones_to_peft_and_merge(latent, tmp_path):
    base = load(latent)
    before = base.model.layers[0].mlp.experts[0].up_proj.weight.clone()
    model = get_peft_model(base, lora(r".*experts\.\d+\.up_proj"))
    losses = learn(model)
    assert losses[-1] < losses[0]
    merged = model.merge_and_unload()
    assert not torch.equal(merged.model.layers[0].mlp.experts[0].up_proj.weight, before)
    merged.save_pretrained(tmp_path, latent=False)
    assert_same_to_rounding(logits(load(tmp_path)), logits(merged))


def test_what_needs_the_dense_weight_is_refused(packed):
    for settings in ({"use_dora": True}, {"init_lora_weights": "pissa"}):
        with pytest.raises((ValueError, TypeError), match=r"(?i)variant|float32"):
            get_peft_model(load(packed), lora(**settings))
    with pytest.raises(ValueError, match=r"PackedLinear.* is not supported"):
        get_peft_model(load(packed), AdaLoraConfig(target_modules=ATTENTION, task_type="CAUSAL_LM", total_step=10))


def test_peft_knows_even_if_it_was_imported_first():
    code = "import peft, mote_quant; print(sorted(kind.__name__ for kind in peft.LoraConfig()._custom_modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "['DenseKeyGuard', 'PackedLinear']"
