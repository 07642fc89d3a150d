"""A latent model after `from_pretrained`: checkpointed activations, HF Trainer with resume, packed at the end."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from mote_quant.hf.attach import attach
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import blocks
from mote_quant.qat.linear import QatLinear
from tests import pico
from tests.finished import finished
from tests.mixtures import TERNARY, logits, mixture, tensors_in
from tests.rounding import assert_same_to_rounding
from tests.sources import source_for

# The name that most code still calls, and that transformers is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")


def gradients(model, seed: int = 0) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model.train()(**pico.inputs(model, seed=seed), use_cache=False).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


MODELS = {
    "ternary": lambda: mixture(TERNARY),
    "two of four, none shared": lambda: mixture(TERNARY, shared="none", top_k=2),
    "low rank": lambda: mixture(lora_rank=4),
    "packed, the rest trains": lambda: finished("llama", TERNARY),
}


@pytest.mark.filterwarnings("ignore:.*None of the inputs have requires_grad:UserWarning")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_checkpointed_gradients_are_the_same_and_the_router_losses_count_once(name, reentrant):
    model = MODELS[name]().requires_grad_(True)
    without = gradients(model)
    attach(model, balance_loss=0.5, z_loss=0.1)
    wanted = gradients(model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = gradients(model)
    assert found.keys() == wanted.keys()
    for key, gradient in wanted.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-4, atol=1e-6)
    router = next(key for key in wanted if key.endswith("mlp.gate.weight"))
    assert not torch.allclose(wanted[router], without[router])
    model.gradient_checkpointing_disable()
    torch.testing.assert_close(gradients(model)[router], wanted[router])


def trainer_for(model, folder, **settings) -> Trainer:
    source = source_for(model)
    fixed = {"per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant", "report_to": []}
    fixed |= {"disable_tqdm": True, "use_cpu": True, "remove_unused_columns": False, "save_strategy": "steps"}
    arguments = TrainingArguments(str(folder), **(fixed | settings))
    rows = list(source.train)
    return Trainer(model, arguments, data_collator=source.collate, train_dataset=rows, eval_dataset=rows[:4])


@pytest.mark.parametrize("checkpointed", [False, True])
def test_trainer_resumes_a_reloaded_latent_model_and_it_packs_to_what_was_trained(checkpointed, latent, tmp_path):
    def train(steps: int, folder, resume: bool = False):
        model = AutoModelForCausalLM.from_pretrained(latent)
        trainer = trainer_for(model, folder, max_steps=steps, save_steps=2, gradient_checkpointing=checkpointed)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    whole = train(4, tmp_path / "whole").model
    before = logits(AutoModelForCausalLM.from_pretrained(latent))
    assert (logits(whole) - before).abs().max() > 0.01
    train(2, tmp_path / "cut")
    resumed = train(4, tmp_path / "cut", resume=True)
    assert resumed.state.global_step == 4
    assert_same_to_rounding(logits(resumed.model), logits(whole))
    checkpoint = AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "checkpoint-4")
    assert any(isinstance(module, QatLinear) for module in checkpoint.modules())
    assert_same_to_rounding(logits(checkpoint), logits(whole))
    whole.save_pretrained(tmp_path / "packed", latent=False)
    packed = AutoModelForCausalLM.from_pretrained(tmp_path / "packed")
    assert_same_to_rounding(logits(packed), logits(whole))
    assert any(isinstance(module, PackedLinear) for module in packed.modules())
    assert tensors_in(tmp_path / "packed")["model.layers.0.mlp.experts.0.up_proj.weight"].dtype == torch.uint8


def test_the_best_model_is_loaded_at_the_end(latent, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(latent)
    settings = {"max_steps": 4, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1.0}
    trainer = trainer_for(model, tmp_path, load_best_model_at_end=True, metric_for_best_model="loss", **settings)
    trainer.train()
    best = AutoModelForCausalLM.from_pretrained(trainer.state.best_model_checkpoint)
    assert_same_to_rounding(logits(model), logits(best))
    assert len(blocks(model)) == 2
