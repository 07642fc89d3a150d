"""A model to measure with: a Llama of a few sizes with random weights, up-cycled, whose experts and routers train."""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from eval.scaling.traffic import Step
from mote_quant.estimate.imagined import units_of
from mote_quant.moe import blocks
from mote_quant.planning import plan_on, skeleton_for
from mote_quant.recipe import load
from mote_quant.recipe.schema import Upcycle
from mote_quant.steps import Context, upcycle

SAMPLES = 8
"""Samples of all processes in a step."""


@dataclass(frozen=True)
class Shape:
    """Sizes of the model, tokens of a sample, and how many steps are timed."""

    hidden: int
    inner: int
    layers: int
    experts: int
    vocabulary: int
    length: int
    steps: int = 1

    def arguments(self) -> list[str]:
        """For a command line."""
        return [str(size) for size in astuple(self)]

    def config(self) -> LlamaConfig:
        """The dense model."""
        heads = max(1, self.hidden // 64)
        return LlamaConfig(
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.length,
            architectures=["LlamaForCausalLM"],
            use_cache=False,
        )

    def tokens(self, samples: int, rank: int) -> Tensor:
        """Random ones, of this process alone."""
        seeded = torch.Generator().manual_seed(rank)
        return torch.randint(0, self.vocabulary, (samples, self.length), generator=seeded)


def built(shape: Shape) -> nn.Module:
    """The model, the same in every process, ready to train."""
    torch.manual_seed(0)
    model: nn.Module = LlamaForCausalLM(shape.config())
    step = {"upcycle": {"experts": shape.experts, "router_std": 0.3}}
    train = {"train": {"what": ["routed", "router"], "data": "random", "steps": 1}}
    recipe = load({"name": "measured", "bits": {"routed": "ternary"}, "pipeline": [step, train, "quantize"]})
    plan = plan_on(recipe, skeleton_for(model))
    first = recipe.pipeline[0].config
    if isinstance(first, Upcycle):
        upcycle.run(model, first, Context(0, plan.layouts, plan.formats, _no_data, None))
    learned = {
        id(p) for block in blocks(model).values() for p in (*block.experts.parameters(), *block.gate.parameters())
    }
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in learned)
    return model.train()


def step_of(model: nn.Module) -> Step:
    """What a step of `model` exchanges."""
    beside, *layers = units_of(model, codes=True)
    kept = sum(p.nbytes for block in blocks(model).values() for p in block.gate.parameters())
    return Step(beside, layers, 1, kept)


def _no_data(name: str, length: int | None) -> None:
    raise LookupError(f"{name} is not read: models here train on random tokens")
