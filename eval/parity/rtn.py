"""rtn beside compressed-tensors, the arithmetic of llm-compressor's rounding: scales, zero points, codes, weights.

    python -m eval.parity.rtn [--model DIR]

Run by the Python of an environment that has compressed-tensors. The weights are random, with exact ties among them, or
every matrix of a checkpoint's safetensors files. Prints how many differ as JSON; fails if any does where none should:
with zero points and float16 scales, ours follow from the scale as it is stored, theirs from the one before it was.
Groups of zeros are left out: they have scale 1 here, the smallest step above 1 less 1 there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file
from torch import Tensor

from mote_quant.formats import format_for
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods import rtn

BITS, GROUP_SIZES, SCALES = (8, 4, 3, 2), (-1, 128, 32), ("float32", "float16")


def theirs(weight: Tensor, spec: IntegerBits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scales, zero points, codes and weights as compressed-tensors has them; its codes start at -2^(bits - 1)."""
    bits = int(spec.format.removeprefix("int"))
    width = weight.shape[1] if spec.group_size == -1 else spec.group_size
    scale_dtype = torch.float16 if spec.scale_dtype == "float16" else None
    args = QuantizationArgs(
        num_bits=bits, symmetric=spec.symmetric, strategy="group", group_size=width, scale_dtype=scale_dtype
    )
    groups = weight.unflatten(1, (-1, width))
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    codes = quantize(weight, scale, zero, args)
    dense = dequantize(codes, scale, zero, args, dtype=torch.float32)
    shift = 0 if spec.symmetric else 2 ** (bits - 1)
    return scale.float(), zero.float() + shift, codes + shift, dense


def ours(weight: Tensor, spec: IntegerBits) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of rtn, through the stored bytes."""
    found, form = rtn(weight, spec), format_for(spec)
    dense = form.decompress(form.compress(found), (weight.shape[0], weight.shape[1]), torch.float32)
    zero = torch.zeros_like(found.scale) if found.zero is None else found.zero
    return found.scale.float(), zero.float(), found.codes.float(), dense


def compare(weights: list[Tensor]) -> Iterator[dict[str, object]]:
    """A row per format: how many scales, zero points, codes and dense weights differ."""
    for bits, group_size, symmetric, scale_dtype in product(BITS, GROUP_SIZES, (True, False), SCALES):
        spec = IntegerBits(
            format=f"int{bits}", group_size=group_size, symmetric=symmetric, scale_dtype=scale_dtype, method="rtn"
        )
        fitting = [weight for weight in weights if group_size == -1 or weight.shape[1] % group_size == 0]
        row: dict[str, object] = spec.model_dump(include={"format", "group_size", "symmetric", "scale_dtype"})
        pairs = [zip(ours(weight, spec), theirs(weight, spec), strict=True) for weight in fitting]
        counts = [[int((one != other).sum()) for one, other in pair] for pair in pairs]
        totals = zip(("scales", "zeros", "codes", "weights"), map(sum, zip(*counts, strict=True)), strict=True)
        differ = {name: total for name, total in totals if total}
        yield row | {"weights": sum(weight.numel() for weight in fitting), "differ": differ}


def random_weights() -> list[Tensor]:
    """Normal numbers, and sixteenths, many of which lie exactly between two codes."""
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(256, 512, generator=generator)
    ties = (torch.randn(256, 512, generator=generator) * 16).round() / 16
    return [normal, normal * 1e-3, ties]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    folder = parser.parse_args().model
    files = [] if folder is None else sorted(folder.glob("*.safetensors"))
    stored = [tensor.float() for file in files for tensor in load_file(file).values() if tensor.dim() == 2]
    rows = list(compare(stored or random_weights()))
    print(json.dumps(rows, indent=1))
    if any(row["differ"] for row in rows if row["symmetric"] or row["scale_dtype"] == "float32"):
        raise SystemExit("rtn is not what compressed-tensors makes of the same weights")


if __name__ == "__main__":
    main()
