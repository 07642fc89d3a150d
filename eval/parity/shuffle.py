"""A Llama checkpoint with its hidden and feed-forward channels in another order: the same function, other groups.

    python -m eval.parity.shuffle --model DIR --seed 1 --output DIR1

On a small model the luck of one grouping moves perplexity by a percent; a mean over some orders is a fairer measure.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from eval.parity.stories import load_dense

READERS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
WRITERS = ("self_attn.o_proj", "mlp.down_proj")
NORMS = ("input_layernorm", "post_attention_layernorm")


@torch.no_grad()
def shuffle(model: Any, seed: int) -> None:
    """Reorder the channels in place; the attention heads stay as they are."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randperm(model.config.hidden_size, generator=generator)
    _reorder(model.model.embed_tokens, hidden, 1)
    _reorder(model.model.norm, hidden, 0)
    if not model.config.tie_word_embeddings:
        _reorder(model.lm_head, hidden, 1)
    for layer in model.model.layers:
        inner = torch.randperm(model.config.intermediate_size, generator=generator)
        for names, axis in ((NORMS, 0), (READERS, 1), (WRITERS, 0)):
            for name in names:
                _reorder(layer.get_submodule(name), hidden, axis)
        for module, axis in ((layer.mlp.gate_proj, 0), (layer.mlp.up_proj, 0), (layer.mlp.down_proj, 1)):
            _reorder(module, inner, axis)


def _reorder(module: torch.nn.Module, order: Tensor, axis: int) -> None:
    weight = module.get_parameter("weight")
    weight.copy_(weight.index_select(axis, order))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    model = load_dense(arguments.model)
    shuffle(model, arguments.seed)
    model.save_pretrained(arguments.output)
    AutoTokenizer.from_pretrained(arguments.model).save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
