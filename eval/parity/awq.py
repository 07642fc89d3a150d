"""Perplexity after awq: ours and llm-compressor's, on one checkpoint with the same tokens.

    python -m eval.parity.gptq tokens --model DIR --calibration a.txt --test b.txt --tokens t.safetensors [--seed 0]
    python -m eval.parity.awq run --library ours --model DIR --tokens t.safetensors --rows rows.jsonl
    python -m eval.parity.awq table --rows rows.jsonl

`run` is called once per library (`ours`, `llmcompressor`), by the Python of an environment that has it; it adds a line
per setting to the rows. All linear layers of the decoder are quantized; embedding and head are not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.parity.gptq import Setting, Weights, ours, table
from eval.parity.gptq import _append as append
from eval.parity.stories import BATCH, LENGTH, Tokens, load_dense, perplexity

SAMPLES = 64


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
    options = dict(setting.options)
    args = QuantizationArgs(
        num_bits=setting.bits,
        group_size=setting.group_size,
        strategy="group",
        symmetric=options.pop("symmetric"),
        observer=options.pop("observer", None),
    )
    groups = {"all": QuantizationScheme(targets=["Linear"], weights=args)}
    dense = load_dense(model)
    rows = {"input_ids": calibration.tolist(), "attention_mask": torch.ones_like(calibration).tolist()}
    oneshot(
        model=dense,
        tokenizer=AutoTokenizer.from_pretrained(model),
        dataset=Dataset.from_dict(rows),
        recipe=[AWQModifier(**options), QuantizationModifier(config_groups=groups, ignore=["lm_head"])],
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


Quantizer = Callable[[Path, Tensor, Setting], Weights]
AWQ: dict[str, Any] = {"method": "awq"}
LIBRARIES: dict[str, tuple[Quantizer, dict[str, dict[str, Any]]]] = {
    "ours": (
        ours,
        {
            "rtn": {"method": "rtn"},
            "awq": AWQ,
            "awq, clip search": AWQ | {"clip": "search"},
        },
    ),
    "llmcompressor": (
        llmcompressor,
        {"default": {}, "duo_scaling both": {"duo_scaling": "both"}, "mse": {"observer": "memoryless_mse"}},
    ),
}
"""What quantizes, and the options of each variant."""


def run(arguments: argparse.Namespace) -> None:
    """One library's rows."""
    tokens = Tokens.load(arguments.tokens)
    quantize, variants = LIBRARIES[arguments.library]
    for symmetric in (True, False):
        for variant, options in variants.items():
            for bits, size in ((b, s) for b in arguments.bits for s in arguments.group_sizes):
                named = f"{variant}, {'symmetric' if symmetric else 'asymmetric'}"
                setting = Setting(named, bits, size, options | {"symmetric": symmetric})
                started = time.monotonic()
                weights = quantize(arguments.model, tokens.calibration[:SAMPLES], setting)
                seconds = round(time.monotonic() - started, 1)
                found = {"perplexity": perplexity(arguments.model, weights, tokens.test), "modules": len(weights)}
                row = {"library": arguments.library, "tokens": arguments.tokens.stem, **asdict(setting), **found}
                append(arguments.rows, row | {"seconds": seconds})


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    ran = commands.add_parser("run", help="quantize and measure")
    ran.add_argument("--library", choices=LIBRARIES, required=True)
    ran.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    ran.add_argument("--group-sizes", type=int, nargs="+", default=[64, 32])
    ran.add_argument("--model", type=Path, required=True)
    ran.add_argument("--tokens", type=Path, required=True)
    for command in (ran, commands.add_parser("table", help="print what was measured")):
        command.add_argument("--rows", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments)
    else:
        print(table([json.loads(line) for line in arguments.rows.read_text().splitlines()]))


if __name__ == "__main__":
    main()
