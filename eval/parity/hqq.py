"""Perplexity after hqq: ours and the hqq package's, on one checkpoint. Neither looks at calibration.

    python -m eval.parity.gptq tokens --model DIR --calibration a.txt --test b.txt --tokens t.safetensors
    python -m eval.parity.hqq run --library ours --model DIR --tokens t.safetensors --rows rows.jsonl
    python -m eval.parity.hqq table --rows rows.jsonl

`run` is called once per library (`ours`, `hqq`), by the Python of an environment that has it; it adds a line per
setting to the rows. All linear layers of the decoder are quantized; embedding and head are not.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from eval.parity.compare import Libraries, main
from eval.parity.gptq import Setting, Weights, ours
from eval.parity.stories import load_dense


def hqq(model: Path, calibration: Tensor, setting: Setting) -> Weights:
    """The hqq package's quantizer: groups along the inputs, zero points and scales in float32."""
    from hqq.core.quantize import Quantizer

    linears = {
        name: module for name, module in load_dense(model).named_modules() if isinstance(module, torch.nn.Linear)
    }
    weights = {}
    for name, linear in linears.items():
        if name != "lm_head":
            codes, meta = Quantizer.quantize(
                linear.weight.detach(), setting.bits, group_size=setting.group_size, axis=1, bitpack=False, device="cpu"
            )
            weights[name] = Quantizer.dequantize(codes, meta | {"compute_dtype": torch.float32})
    return weights


LIBRARIES: Libraries = {
    "ours": (
        ours,
        {
            "zero points": {"method": "hqq", "symmetric": False},
            "symmetric": {"method": "hqq"},
            "rtn": {"method": "rtn", "symmetric": False},
            "rtn, clip search": {"method": "rtn", "symmetric": False, "clip": "search"},
        },
    ),
    "hqq": (hqq, {"zero points": {}}),
}


if __name__ == "__main__":
    main(LIBRARIES, __doc__)
