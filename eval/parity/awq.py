"""Perplexity after awq: ours and llm-compressor's, on one checkpoint with the same tokens.

    python -m eval.parity.gptq tokens --model DIR --calibration a.txt --test b.txt --tokens t.safetensors [--seed 0]
    python -m eval.parity.awq run --library ours --model DIR --tokens t.safetensors --rows rows.jsonl
    python -m eval.parity.awq table --rows rows.jsonl

`run` is called once per library (`ours`, `llmcompressor`), by the Python of an environment that has it; it adds a line
per setting to the rows. All linear layers of the decoder are quantized; embedding and head are not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.parity.compare import Libraries, main
from eval.parity.gptq import Setting, Weights, ours
from eval.parity.stories import BATCH, LENGTH, load_dense


def llmcompressor(model: Path, calibration: Tensor, setting: Setting) -> Weights:
    """Its smoothed and rounded weights, and the norms that took up the factors."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme, forward_quantize
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier
    from transformers import AutoTokenizer

    # It pins what it keeps of the calibration, which needs a GPU.
    torch.Tensor.pin_memory = lambda self, *args: self  # type: ignore[method-assign]
    args = QuantizationArgs(num_bits=setting.bits, group_size=setting.group_size, strategy="group", **setting.options)
    groups = {"all": QuantizationScheme(targets=["Linear"], weights=args)}
    dense = load_dense(model)
    rows = {"input_ids": calibration.tolist(), "attention_mask": torch.ones_like(calibration).tolist()}
    oneshot(
        model=dense,
        tokenizer=AutoTokenizer.from_pretrained(model),
        dataset=Dataset.from_dict(rows),
        recipe=[AWQModifier(), QuantizationModifier(config_groups=groups, ignore=["lm_head"])],
        num_calibration_samples=len(calibration),
        max_seq_length=LENGTH,
        batch_size=BATCH,
    )
    weights = {}
    for name, module in dense.model.named_modules():
        if hasattr(module, "quantization_scheme"):
            weights[f"model.{name}"] = forward_quantize(module, module.weight, "weight", args).detach()
        elif "norm" in name:
            weights[f"model.{name}"] = module.weight.detach()
    return weights


AWQ: dict[str, Any] = {"method": "awq"}
SEARCH, UNEVEN = {"clip": "search"}, {"symmetric": False}
MSE = {"observer": "memoryless_mse"}
LIBRARIES: Libraries = {
    "ours": (
        ours,
        {
            "symmetric": AWQ,
            "asymmetric": AWQ | UNEVEN,
            "symmetric, clip search": AWQ | SEARCH,
            "asymmetric, clip search": AWQ | SEARCH | UNEVEN,
        },
    ),
    "llmcompressor": (
        llmcompressor,
        {"symmetric": {}, "asymmetric": UNEVEN, "symmetric, mse": MSE, "asymmetric, mse": MSE | UNEVEN},
    ),
}


if __name__ == "__main__":
    main(LIBRARIES, __doc__)
