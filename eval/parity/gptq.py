"""Perplexity after gptq: ours, gptqmodel's and llm-compressor's, on one checkpoint with the same tokens.

    python -m eval.parity.gptq tokens --model DIR --calibration a.txt --test b.txt --tokens t.safetensors [--seed 0]
    python -m eval.parity.gptq run --library ours --model DIR --tokens t.safetensors --rows rows.jsonl
    python -m eval.parity.gptq table --rows rows.jsonl

`run` is called once per library (`ours`, `gptqmodel`, `llmcompressor`), by the Python of an environment that has it;
it adds a line per setting to the rows. All linear layers of the decoder are quantized; embedding and head are not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.parity.stories import BATCH, LENGTH, Tokens, load_dense, perplexity, read_tokens

Weights = dict[str, Tensor]
"""Module name -> the weight [out, in] its codes stand for."""


@dataclass(frozen=True)
class Setting:
    """Bits, columns a group, and what else the library is told."""

    variant: str
    bits: int
    group_size: int
    options: Mapping[str, Any] = field(default_factory=dict)


def ours(model: Path, calibration: Tensor, setting: Setting) -> Weights:
    """Through the same door as a user."""
    import mote_quant
    from mote_quant.data.source import Source
    from mote_quant.kernels import PackedLinear

    rows = list(calibration)
    data = Source("stories", "stories", rows, rows, rows, lambda chosen: {"input_ids": torch.stack(chosen)}, "text")
    bits = {"format": f"int{setting.bits}", "group_size": setting.group_size, **setting.options}
    drawn = {"data": "stories", "samples": len(rows), "batch_size": BATCH, "max_length": LENGTH}
    # With nothing to measure all samples are calibrated with, as by the others.
    quantize = {"calibration": drawn, "measure": "none"}
    recipe = {"name": "parity", "bits": {"ffn": bits, "attention": bits}, "pipeline": [{"quantize": quantize}]}
    packed = mote_quant.apply(recipe, load_dense(model), data=data)
    return {name: module.dequantize() for name, module in packed.named_modules() if isinstance(module, PackedLinear)}


def gptqmodel(model: Path, calibration: Tensor, setting: Setting) -> Weights:
    """GPTQModel, saved and read again by itself."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    config = QuantizeConfig(bits=setting.bits, group_size=setting.group_size, sym=True, **setting.options)
    loaded = GPTQModel.load(str(model), config, dtype=torch.float32, device="cpu")
    samples = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration]
    loaded.quantize(samples, batch_size=BATCH, calibration_sort=None)
    with tempfile.TemporaryDirectory() as folder:
        loaded.save(folder)
        stored = GPTQModel.load(folder, backend=BACKEND.GPTQ_TORCH, device="cpu").model
    return {
        name: module.dequantize_weight().T.float()
        for name, module in stored.named_modules()
        if hasattr(module, "dequantize_weight")
    }


def llmcompressor(model: Path, calibration: Tensor, setting: Setting) -> Weights:
    """llm-compressor leaves the rounded weights in the model."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from transformers import AutoTokenizer

    options = dict(setting.options)
    args = QuantizationArgs(
        num_bits=setting.bits,
        group_size=None if setting.group_size == -1 else setting.group_size,
        strategy="channel" if setting.group_size == -1 else "group",
        observer=options.pop("observer", None),
    )
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    dense = load_dense(model)
    names = [name for name, module in dense.model.layers.named_modules() if isinstance(module, torch.nn.Linear)]
    rows = {"input_ids": calibration.tolist(), "attention_mask": torch.ones_like(calibration).tolist()}
    oneshot(
        model=dense,
        tokenizer=AutoTokenizer.from_pretrained(model),
        dataset=Dataset.from_dict(rows),
        recipe=GPTQModifier(config_groups={"all": scheme}, ignore=["lm_head"], **options),
        num_calibration_samples=len(calibration),
        max_seq_length=LENGTH,
        batch_size=BATCH,
    )
    return {f"model.layers.{name}": dense.model.layers.get_submodule(name).weight.detach() for name in names}


RTN: dict[str, Any] = {"method": "rtn"}
GPTQ: dict[str, Any] = {"method": "gptq"}
SEARCH = {"clip": "search"}
LIBRARIES: dict[str, tuple[Callable[[Path, Tensor, Setting], Weights], dict[str, dict[str, Any]]]] = {
    "ours": (
        ours,
        {
            "rtn": RTN,
            "rtn, clip search": RTN | SEARCH,
            "gptq": GPTQ,
            "gptq, clip search": GPTQ | SEARCH,
            "gptq, left to right": GPTQ | {"act_order": False},
            "gptq, left to right, clip search": GPTQ | SEARCH | {"act_order": False},
        },
    ),
    "gptqmodel": (
        gptqmodel,
        {
            "default": {},
            "desc_act": {"desc_act": True},
            "default, mse": {"mse": 2.4},
            "desc_act, mse": {"desc_act": True, "mse": 2.4},
        },
    ),
    "llmcompressor": (
        llmcompressor,
        {
            "default": {},
            "no actorder": {"actorder": None},
            "default, mse": {"observer": "memoryless_mse"},
            "no actorder, mse": {"actorder": None, "observer": "memoryless_mse"},
        },
    ),
}
"""What quantizes, and the options of each variant."""


def settings(library: str, bits: list[int], group_sizes: list[int]) -> Iterator[Setting]:
    """Every variant of a library with every number of bits and every group size."""
    for variant, options in LIBRARIES[library][1].items():
        for group_size in group_sizes:
            for count in bits:
                yield Setting(variant, count, group_size, options)


def run(arguments: argparse.Namespace) -> None:
    """One library's rows."""
    tokens = Tokens.load(arguments.tokens)
    for setting in settings(arguments.library, arguments.bits, arguments.group_sizes):
        started = time.monotonic()
        weights = LIBRARIES[arguments.library][0](arguments.model, tokens.calibration, setting)
        seconds = round(time.monotonic() - started, 1)
        found = {"perplexity": perplexity(arguments.model, weights, tokens.test), "modules": len(weights)}
        row = {"library": arguments.library, "tokens": arguments.tokens.stem, **asdict(setting), **found}
        _append(arguments.rows, row | {"seconds": seconds})
    _append(arguments.rows, {"library": "none", "perplexity": perplexity(arguments.model, {}, tokens.test)})


def _append(path: Path, row: dict[str, Any]) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    with path.open("a") as file:
        file.write(line + "\n")


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: variants down, formats across; perplexities are means over the token files."""
    quantized = [row for row in rows if row["library"] != "none"]
    columns = sorted({(row["group_size"], -row["bits"]) for row in quantized})
    lines = ["| | " + " | ".join(f"int{-bits}, {_group(size)}" for size, bits in columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for library, variant in dict.fromkeys((row["library"], row["variant"]) for row in quantized):
        mine = [row for row in quantized if (row["library"], row["variant"]) == (library, variant)]
        cells = [_mean(row["perplexity"] for row in mine if (row["group_size"], -row["bits"]) == c) for c in columns]
        lines.append(f"| {library}: {variant} | " + " | ".join(cells) + " |")
    dense = _mean(row["perplexity"] for row in rows if row["library"] == "none")
    return "\n".join([*lines, f"| not quantized | {dense}" + " |" * len(columns)])


def _group(size: int) -> str:
    return "whole rows" if size == -1 else f"groups of {size}"


def _mean(values: Iterator[float]) -> str:
    found = list(values)
    return f"{statistics.mean(found):.3f}" if found else "-"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("tokens", help="read the texts")
    for name in ("--model", "--calibration", "--test", "--tokens"):
        made.add_argument(name, type=Path, required=True)
    made.add_argument("--seed", type=int, default=0)
    ran = commands.add_parser("run", help="quantize and measure")
    ran.add_argument("--library", choices=LIBRARIES, required=True)
    ran.add_argument("--bits", type=int, nargs="+", default=[4, 3])
    ran.add_argument("--group-sizes", type=int, nargs="+", default=[64, 128])
    for command in (ran, commands.add_parser("table", help="print what was measured")):
        command.add_argument("--rows", type=Path, required=True)
    for name in ("--model", "--tokens"):
        ran.add_argument(name, type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.command == "tokens":
        tokens = read_tokens(arguments.model, arguments.calibration, arguments.test, arguments.seed)
        tokens.save(arguments.tokens)
    elif arguments.command == "run":
        run(arguments)
    else:
        print(table([json.loads(line) for line in arguments.rows.read_text().splitlines()]))


if __name__ == "__main__":
    main()
