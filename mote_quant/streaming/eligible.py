"""Which runs can go through a model stage by stage, and why others have to hold it."""

from __future__ import annotations

from pathlib import Path

from mote_quant.hf.mapped import not_mapped_because
from mote_quant.recipe import Recipe
from mote_quant.recipe.schema import AutoBits, FloatBits, Quantize

_PIPELINES = (["quantize"], ["upcycle", "quantize"])


def streamable(recipe: Recipe) -> str | None:
    """None where a run of `recipe` needs no more than a stage of the model at a time; else what stands against it."""
    if [step.name for step in recipe.pipeline] not in _PIPELINES:
        return "only pipelines of an optional upcycle and a quantize step go stage by stage"
    if any(isinstance(spec, AutoBits) for spec in recipe.bits.values()):
        return "bits: auto compares formats over the whole model"
    config = recipe.pipeline[-1].config
    if isinstance(config, Quantize) and config.keep_latents:
        return "keep_latents keeps the experts of every layer as floats"
    if isinstance(config, Quantize) and config.skip_rate:
        return "skip_rate is set on the finished model"
    if isinstance(config, Quantize) and config.calibration and _casts(recipe):
        return "calibration sees all of the model in its types before any of it is cast"
    return None


def _casts(recipe: Recipe) -> bool:
    """Whether a rule gives a float type; routers are in float32 anyway."""
    floats = {target for target, spec in recipe.bits.items() if isinstance(spec, FloatBits)}
    return bool(floats - {"router"})


def held_because(recipe: Recipe, folder: Path) -> str | None:
    """Why a run of `recipe` on the model in `folder` has to hold all of it in memory; None when it need not."""
    return streamable(recipe) or not_mapped_because(folder, recipe.bits)
