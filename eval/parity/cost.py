"""Seconds and peak memory of gptq int4 (groups of 128) on a model of the shape of Qwen2.5-1.5B with few layers.

    python -m eval.parity.cost make --model DIR [--layers 4] [--ffn 8960]
    python -m eval.parity.cost run --library ours --model DIR [--samples 128] [--length 512] [--threads 2]

`run` is called once per library, in a process of its own, by the Python of an environment that has it; it prints a line
of JSON. Random weights and tokens: cost does not depend on them. Peak memory is that of the process, after subtracting
what it held before the model was loaded; float32 throughout.
"""

from __future__ import annotations

import argparse
import json
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

BATCH = 8


def make(arguments: argparse.Namespace) -> None:
    """Write the model."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=1536,
        intermediate_size=arguments.ffn,
        num_hidden_layers=arguments.layers,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=4096,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(arguments.model)


def ours(model: Path, calibration: Tensor) -> None:
    """As a user would run it, without the report's measurements of the whole model."""
    import mote_quant
    from mote_quant.data.source import Source

    rows = list(calibration)
    data = Source("random", "random", rows, rows, rows, lambda chosen: {"input_ids": torch.stack(chosen)}, "text")
    bits = {"format": "int4", "group_size": 128, "method": "gptq"}
    calibrated = {"data": "random", "samples": len(rows), "batch_size": BATCH}
    pipeline = [{"quantize": {"calibration": calibrated, "measure": "none"}}]
    mote_quant.apply(
        {"name": "cost", "bits": {"ffn": bits, "attention": bits}, "pipeline": pipeline}, _load(model), data=data
    )


def gptqmodel(model: Path, calibration: Tensor) -> None:
    """GPTQModel with its defaults; quantizing alone, without packing."""
    from gptqmodel import GPTQModel, QuantizeConfig

    loaded = GPTQModel.load(str(model), QuantizeConfig(bits=4, group_size=128), dtype=torch.float32, device="cpu")
    samples = [{"input_ids": row.tolist(), "attention_mask": [1] * len(row)} for row in calibration]
    loaded.quantize(samples, batch_size=BATCH, calibration_sort=None)


def llmcompressor(model: Path, calibration: Tensor) -> None:
    """llm-compressor's GPTQModifier with its defaults."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier

    rows = {"input_ids": calibration.tolist(), "attention_mask": torch.ones_like(calibration).tolist()}
    oneshot(
        model=_load(model),
        dataset=Dataset.from_dict(rows),
        recipe=GPTQModifier(targets="Linear", scheme="W4A16", ignore=["lm_head"]),
        num_calibration_samples=len(calibration),
        max_seq_length=calibration.shape[1],
        batch_size=BATCH,
    )


LIBRARIES: dict[str, Callable[[Path, Tensor], None]] = {
    "ours": ours,
    "gptqmodel": gptqmodel,
    "llmcompressor": llmcompressor,
}


def _load(model: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def run(arguments: argparse.Namespace) -> None:
    """One library."""
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    calibration = torch.randint(0, 4096, (arguments.samples, arguments.length), generator=generator)
    before, weights = _resident(), sum(path.stat().st_size for path in arguments.model.glob("*.safetensors"))
    with _Peak() as peak:
        started = time.monotonic()
        LIBRARIES[arguments.library](arguments.model, calibration)
        seconds = time.monotonic() - started
    print(
        json.dumps(
            {
                "library": arguments.library,
                "seconds": round(seconds, 1),
                "peak_mib": round((peak.bytes - before) / 2**20),
                "model_mib": round(weights / 2**20),
                "maxrss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
                **{key: getattr(arguments, key) for key in ("samples", "length", "threads")},
            }
        )
    )


class _Peak:
    """Watches the memory of this process, ten times a second."""

    def __enter__(self) -> _Peak:
        self.bytes, self._over = _resident(), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.bytes = max(self.bytes, _resident())


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made, ran = commands.add_parser("make", help="write the model"), commands.add_parser("run", help="measure")
    for command in (made, ran):
        command.add_argument("--model", type=Path, required=True)
    made.add_argument("--layers", type=int, default=4)
    made.add_argument("--ffn", type=int, default=8960)
    ran.add_argument("--library", choices=LIBRARIES, required=True)
    for name, default in (("--samples", 128), ("--length", 512), ("--threads", 2)):
        ran.add_argument(name, type=int, default=default)
    arguments = parser.parse_args()
    {"make": make, "run": run}[arguments.command](arguments)


if __name__ == "__main__":
    main()
