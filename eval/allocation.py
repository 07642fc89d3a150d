"""Mixed precision within a budget, Hessians an expert, skipped experts: on up-cycled models of a real checkpoint.

    python -m eval.allocation --data DIR --models FOLDER [--seeds 0 1 2] [--output eval/results/allocation.json]

DIR is as for `eval.stories`. FOLDER holds the trained float models `moe-SEED` and `mote-SEED`; those that are
missing are trained and kept there. Everything is quantized in groups of 64; the loss is on the test stories.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils import logging as transformers_logging

import mote_quant
from eval.tinystories import dense, open_stories, recipe
from mote_quant.data.calibration import calibration_batches
from mote_quant.data.source import Source
from mote_quant.evaluate import evaluate
from mote_quant.hf.loading import load_model
from mote_quant.hf.structure import replace_module
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.methods import METHODS, HessianSum, Seen
from mote_quant.steps.quantize.walk import Walk

GROUP: dict[str, Any] = {"group_size": 64}
GPTQ: dict[str, Any] = GROUP | {"method": "gptq"}
CALIBRATION = {"data": "tinystories", "samples": 128, "batch_size": 16}


@dataclass(frozen=True)
class Place:
    """Where a projection of a routed expert is: `layer`, `expert`, and `part` (gate, up or down)."""

    layer: int
    expert: int
    part: str


def _three_if(condition: Callable[[Place], bool]) -> Callable[[Place], int]:
    return lambda place: 3 if condition(place) else 2


# Every hand-made way to spend 2.5 bits on average; `down` with one more projection in one of the two layers is 2.5 too.
MIXES: dict[str, Callable[[Place], int]] = {
    "first layer int3, second int2": _three_if(lambda p: p.layer == 0),
    "second layer int3, first int2": _three_if(lambda p: p.layer == 1),
    "even experts int3, odd int2": _three_if(lambda p: p.expert % 2 == 0),
    "odd experts int3, even int2": _three_if(lambda p: p.expert % 2 == 1),
    "down and first gate int3": _three_if(lambda p: p.part == "down" or (p.part == "gate" and p.layer == 0)),
    "down and second gate int3": _three_if(lambda p: p.part == "down" or (p.part == "gate" and p.layer == 1)),
    "down and first up int3": _three_if(lambda p: p.part == "down" or (p.part == "up" and p.layer == 0)),
    "down and second up int3": _three_if(lambda p: p.part == "down" or (p.part == "up" and p.layer == 1)),
    "gate and first up int3": _three_if(lambda p: p.part == "gate" or (p.part == "up" and p.layer == 0)),
    "gate and second up int3": _three_if(lambda p: p.part == "gate" or (p.part == "up" and p.layer == 1)),
}
AUTOS: dict[str, dict[str, Any]] = {
    "auto": {},
    "auto, expert": {"decide": "expert"},
    "auto, expert, mc": {"decide": "expert", "sensitivity": "mc"},
}
AVERAGES = (2.5, 3.0)
SKIPS = (0.0, 0.1, 0.2, 0.4)


def routed(model: nn.Module) -> dict[str, Place]:
    """The projections of all routed experts, `...layers.L.mlp.experts.E.PART_proj`."""
    names = [name for name, module in model.named_modules() if ".experts." in name and isinstance(module, nn.Linear)]
    places = {}
    for name in names:
        parts = name.split(".")
        places[name] = Place(int(parts[parts.index("layers") + 1]), int(parts[-2]), parts[-1].removesuffix("_proj"))
    return places


def trained(root: Path, folder: Path, source: Source, kind: str, seed: int) -> Any:
    """The float model `kind`-`seed`, trained first if the folder does not have it."""
    path = folder / f"{kind}-{seed}"
    if not (path / "config.json").exists():
        mote_quant.apply(recipe(kind, seed), dense(root), data=source, output=path)
    return load_model(str(path))


def quantized(model: nn.Module, source: Source, seed: int, bits: Mapping[str, Any], **settings: Any) -> nn.Module:
    """The model after a quantize step."""
    step = {"calibration": CALIBRATION, "measure": "none"} | settings
    made = {"name": "allocation", "seed": seed, "bits": dict(bits), "pipeline": [{"quantize": step}]}
    return mote_quant.apply(made, model, data=source)


def averages(model: nn.Module) -> tuple[float, int]:
    """Average code bits of the packed routed experts, and their bytes."""
    packed = [module for name, module in model.named_modules() if ".experts." in name]
    layers = [module for module in packed if isinstance(module, PackedLinear)]
    weights = sum(layer.in_features * layer.out_features for layer in layers)
    bits = sum(layer.format.paper_bits * layer.in_features * layer.out_features for layer in layers)
    return bits / weights, sum(buffer.nbytes for layer in layers for buffer in layer.buffers())


def mixtures(make: Callable[[], Any], source: Source, seed: int) -> Iterator[dict[str, Any]]:
    """Uniform formats, hand-made mixes and what `auto` decides, for the routed experts of a full-precision mixture."""
    whole = {f"int{bits}": {"routed": GPTQ | {"format": f"int{bits}"}} for bits in (2, 3, 4)}
    places = routed(make())
    by_hand = {
        name: {module: GPTQ | {"format": f"int{mix(place)}"} for module, place in places.items()}
        for name, mix in MIXES.items()
    }
    autos = {
        f"{name} {average}": {"routed": GPTQ | {"format": "auto", "average_bits": average} | more}
        for name, more in AUTOS.items()
        for average in AVERAGES
    }
    for name, bits in (whole | by_hand | autos).items():
        started = time.monotonic()
        model = quantized(make(), source, seed, bits)
        seconds = time.monotonic() - started
        average, size = averages(model)
        formats = [cast(PackedLinear, model.get_submodule(module)).spec.format[3:] for module in places]
        yield {
            "name": name, "average_bits": average, "bytes": size, "loss": evaluate(model, source)["loss"],
            "formats": "".join(formats), "seconds": round(seconds, 1),
        }  # fmt: skip


def hessians(make: Callable[[], Any], source: Source, seed: int) -> Iterator[dict[str, Any]]:
    """int3 by rtn, by gptq with one Hessian for all experts of a layer, and with a Hessian for each expert."""
    for name in ("rtn", "gptq, Hessian of the layer", "gptq, Hessian of the expert"):
        model = make()
        _round_experts(model, calibration_batches(source, 128, 16, seed).batches, name)
        yield {"name": name, "loss": evaluate(model, source)["loss"]}


@torch.no_grad()
def _round_experts(model: nn.Module, batches: Sequence[Any], how: str) -> None:
    """Layer by layer, on what the layers quantized before put out."""
    spec = IntegerBits(format="int3", method="rtn" if how == "rtn" else "gptq", group_size=64)
    walk, places = Walk(model.eval(), batches), routed(model)
    for stage, names in enumerate(walk.stages(list(places))):
        sums = {name: HessianSum(cast(nn.Linear, model.get_submodule(name)).in_features, name=name) for name in names}
        handles = [
            model.get_submodule(name).register_forward_pre_hook(lambda m, args, total=total: total.add(args[0]))
            for name, total in sums.items()
        ]
        walk.run(stage)
        for handle in handles:
            handle.remove()
        seen = {name: Seen(total.tokens, total.value()) for name, total in sums.items()}
        if how == "gptq, Hessian of the layer":
            seen = {name: _pooled([seen[n] for n in names if places[n].part == places[name].part]) for name in names}
        for name in names:
            weight = cast(nn.Linear, model.get_submodule(name)).weight
            codes = METHODS[spec.method](weight, spec, seen[name], name=name)
            replace_module(model, name, PackedLinear.pack(spec, codes, None, weight.dtype))
        walk.leave(stage)


def _pooled(seen: Sequence[Seen]) -> Seen:
    """One Hessian of all tokens."""
    tokens = sum(each.tokens for each in seen)
    return Seen(tokens, sum((cast(Tensor, each.hessian) * (each.tokens / tokens) for each in seen), torch.zeros(())))


def skipping(make: Callable[[], Any], source: Source, seed: int, bits: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The loss when more and more tokens are spared their routed experts."""
    for rate in SKIPS:
        model = quantized(make(), source, seed, bits, skip_rate=rate)
        yield {"name": f"skip {rate}", "loss": evaluate(model, source)["loss"]}


def measure(root: Path, folder: Path, source: Source, seed: int) -> dict[str, Any]:
    """All tables of one seed."""

    def moe() -> Any:
        return trained(root, folder, source, "moe", seed)

    def mote() -> Any:
        return trained(root, folder, source, "mote", seed)

    int4, int3 = GPTQ | {"format": "int4"}, GPTQ | {"format": "int3"}
    return {
        "seed": seed,
        "float": evaluate(moe(), source)["loss"],
        "mixes": list(mixtures(moe, source, seed)),
        "hessians": list(hessians(moe, source, seed)),
        "moe_skip": list(skipping(moe, source, seed, {"routed": int3})),
        "mote_skip": list(skipping(mote, source, seed, {"routed": "ternary", "shared": int4})),
    }


def summary(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean loss by table and name, and for each average what `auto` loses to the best uniform way of equal bytes."""
    tables = {
        table: {row["name"]: _mean(points, table, row["name"]) for row in points[0][table]}
        for table in ("mixes", "hessians", "moe_skip", "mote_skip")
    }
    worse = {
        str(average): [_loss(point, f"auto {average}") - _best_by_hand(point, average) for point in points]
        for average in AVERAGES
    }
    return tables | {"auto_minus_best_by_hand": worse}


def _rows(point: Mapping[str, Any], table: str) -> dict[str, Any]:
    return {row["name"]: row for row in point[table]}


def _loss(point: Mapping[str, Any], name: str) -> float:
    return float(_rows(point, "mixes")[name]["loss"])


def _best_by_hand(point: Mapping[str, Any], average: float) -> float:
    rows = [row for row in point["mixes"] if not row["name"].startswith("auto")]
    return min(float(row["loss"]) for row in rows if abs(row["average_bits"] - average) < 1e-9)


def _mean(points: Sequence[Mapping[str, Any]], table: str, name: str) -> float:
    losses: list[float] = [_rows(point, table)[name]["loss"] for point in points]
    return round(statistics.mean(losses), 4)


def markdown(points: Sequence[Mapping[str, Any]]) -> str:
    """All tables, a column a seed."""
    parts = []
    for table in ("mixes", "hessians", "moe_skip", "mote_skip"):
        header = f"| {table} | " + " | ".join(f"seed {point['seed']}" for point in points) + " | mean |"
        lines = [header, "|" + "---|" * (len(points) + 2)]
        for row in points[0][table]:
            losses = [_rows(point, table)[row["name"]]["loss"] for point in points]
            cells = " | ".join(f"{loss:.4f}" for loss in [*losses, statistics.mean(losses)])
            lines.append(f"| {row['name']} | {cells} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """Run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("eval/results/allocation.json"))
    arguments = parser.parse_args()
    transformers_logging.disable_progress_bar()
    source = open_stories(arguments.data)
    points = [measure(arguments.data, arguments.models, source, seed) for seed in arguments.seeds]
    found = summary(points)
    results = {"points": points, "summary": found}
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    print(markdown(points))
    print(json.dumps(found["auto_minus_best_by_hand"]))


if __name__ == "__main__":
    main()
