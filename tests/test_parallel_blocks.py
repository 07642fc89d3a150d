"""Models whose decoder layer adds to the feed-forward's output in place."""

from __future__ import annotations

import torch
import transformers

from mote_quant.pipeline import apply
from tests import pico
from tests.mixtures import TRAIN, logits
from tests.sources import source_for


def falcon():
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.FalconConfig(**sizes, parallel_attn=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return transformers.FalconForCausalLM(config).eval()


def test_falcon_end_to_end(tmp_path):
    model = falcon()
    steps = [{"upcycle": {"experts": 2}}, {"train": TRAIN | {"balance_loss": 0.5}}, "quantize"]
    recipe = {"name": "falcon", "bits": {"routed": "ternary", "shared": "int8"}, "pipeline": steps}
    apply(recipe, model, data=source_for(model), output=tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-4, atol=1e-4)
    assert loaded(**pico.inputs(loaded)).loss.isfinite()
