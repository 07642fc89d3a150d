"""Who competes in the demo, each from a shipped recipe: its training once, its post-training tails after that."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mote_quant.recipe import Recipe, load


@dataclass(frozen=True)
class Contender:
    """`base` names the trained model it starts from; `tail` is a recipe of one quantize step."""

    name: str
    base: str
    tail: Recipe


DENSE, MOTE, MOE = "dense", "mote", "moe"


def training_recipes(seed: int) -> dict[str, Recipe]:
    """Base -> what trains it. The mixtures are up-cycled from the dense model and trained on the same data and seed."""
    overrides = [f"seed={seed}"]
    dense, mote, moe = (load(name, overrides) for name in ("digits-dense", "mote-digits", "moe-digits"))
    return {DENSE: dense, MOTE: _without_tail(mote, ["routed"]), MOE: _without_tail(moe, [])}


def contenders(seed: int) -> list[Contender]:
    """Every line of the demo's table, smallest idea first."""
    mote = load("mote-digits", [f"seed={seed}"])
    tails = {name: load(name, [f"seed={seed}"]) for name in ("moe-digits", "moe-digits-int4", "moe-digits-int3")}
    int4 = mote.bits["shared"]
    calibrated = mote.pipeline[-1].model_dump(exclude_none=True)
    plain: list[Any] = [{"quantize": {}}]
    return [
        Contender("dense-bf16", DENSE, _tail("dense-bf16", {"*": "bfloat16"}, plain, seed)),
        Contender("dense-int4", DENSE, _tail("dense-int4", {"ffn": int4, "*": "bfloat16"}, [calibrated], seed)),
        Contender("mote-bf16", MOTE, _only_tail(mote, "mote-bf16", drop="shared")),
        Contender("mote-int4", MOTE, _only_tail(mote, "mote-int4")),
        Contender("moe-bf16", MOE, _only_tail(tails["moe-digits"], "moe-bf16")),
        Contender("moe-int4", MOE, _only_tail(tails["moe-digits-int4"], "moe-int4")),
        Contender("moe-int3", MOE, _only_tail(tails["moe-digits-int3"], "moe-int3")),
    ]


def _without_tail(recipe: Recipe, keep: list[str]) -> Recipe:
    bits = {target: spec for target, spec in recipe.bits.items() if target in keep}
    return recipe.model_copy(update={"name": f"{recipe.name}-trained", "bits": bits, "pipeline": recipe.pipeline[:-1]})


def _only_tail(recipe: Recipe, name: str, drop: str = "") -> Recipe:
    bits = {target: spec for target, spec in recipe.bits.items() if target != drop}
    return recipe.model_copy(update={"name": name, "bits": bits, "pipeline": recipe.pipeline[-1:]})


def _tail(name: str, bits: dict[str, Any], pipeline: list[Any], seed: int) -> Recipe:
    return load({"name": name, "seed": seed, "bits": bits, "pipeline": pipeline})
