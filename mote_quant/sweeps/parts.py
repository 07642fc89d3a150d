"""The pieces of one candidate's recipe, put together from the nodes of the sweep's file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mote_quant.recipe.located import Node, Place, Problem
from mote_quant.recipe.merge import merge
from mote_quant.sweeps.schema import Sweep

MADE = Place("<sweep>")
MIXTURE_ROLES = ("routed", "router", "shared")
NOBODYS = {
    "learning_rate": "it is chosen from the sweep's learning_rates",
    "search": "rates are chosen from the sweep's learning_rates, by the same steps for everybody",
    "data": "it is the sweep's data",
    "stream": "a sweep reads its data once, for all contenders",
}
EVERYBODYS = ("steps", "batch_size", "gradient_accumulation", "schedule", "warmup", "max_length", "pack", "bucket")


@dataclass(frozen=True)
class Parts:
    """The pieces of one candidate, as located nodes."""

    sweep: Sweep
    whole: Node
    family: str
    variant: str
    experts: int | None

    @property
    def own(self) -> Node:
        """What the file says of this contender."""
        return _at(self.whole, "contenders", self.family)

    @property
    def name(self) -> str:
        """Contender, number of experts, variant."""
        parts = [self.family, "" if self.experts is None else f"{self.experts}e", self.variant]
        return "-".join(part for part in parts if part)

    def entries(self, key: str) -> dict[str, Node]:
        """The mapping under one of the contender's keys; empty without it."""
        return _mapping(self.own, key)

    def bits(self) -> dict[str, Node]:
        """The first match wins: what is trained so, then the variant's, the contender's, the sweep's."""
        chosen = _mapping(self.own, "variants", self.variant) if self.variant else {}
        return _first_wins(self.entries("qat"), chosen, self.entries("bits"), self.common())

    def common(self) -> dict[str, Node]:
        """The sweep's own formats, for the roles that this contender has."""
        upcycle = self.own.child("upcycle")
        absent = MIXTURE_ROLES if upcycle is None else ("shared",) if _says_none(upcycle) else ()
        return {target: node for target, node in _mapping(self.whole, "bits").items() if target not in absent}

    def training(self) -> list[Node]:
        """The steps before quantization."""
        steps = []
        if self.own.child("upcycle") is not None:
            upcycle = self.entries("upcycle") | ({} if self.experts is None else {"experts": _node(self.experts)})
            steps.append(_step("upcycle", upcycle, self.own))
        if self.own.child("train") is not None:
            merged = merge(_at(self.own, "train"), _at(self.whole, "train"))
            fixed = {"data": _node(self.sweep.data), "learning_rate": _node(self.sweep.learning_rates[0])}
            steps.append(_step("train", fixed | dict(merged.value or {}), self.own))
        return steps

    def unfair(self) -> Iterator[Problem]:
        """What all contenders share, and none may say for itself."""
        own = ("contenders", self.family)
        for path in (("train",), (*own, "train")):
            for key, node in _mapping(self.whole, *path).items():
                if key in NOBODYS:
                    yield Problem(node.place, (*path, key), f"cannot be set here: {NOBODYS[key]}")
                elif key in EVERYBODYS and len(path) > 1:
                    yield Problem(node.place, (*path, key), "is the same for everybody: set it in the sweep's train")
        for place in (("quantize", "calibration"), (*own, "quantize", "calibration")):
            for key, node in _mapping(self.whole, *place).items():
                if key == "data":
                    yield Problem(node.place, (*place, key), f"cannot be set here: {NOBODYS[key]}")
                elif key == "max_length" and node.value != self.sweep.train.get("max_length"):
                    yield Problem(node.place, (*place, key), "is that of the sweep's train: samples are cut once")

    def quantize(self) -> Node:
        """The last step; no report on logits is made here, `measure` says more of them."""
        merged = dict(merge(_at(self.own, "quantize"), _at(self.whole, "quantize")).value or {})
        calibration = merged.get("calibration")
        if calibration is not None and isinstance(calibration.value, dict):
            length = self.sweep.train.get("max_length")
            seen = {"data": _node(self.sweep.data)} | ({} if length is None else {"max_length": _node(length)})
            merged["calibration"] = Node({**seen, **calibration.value}, calibration.place)
        return _step("quantize", {"measure": _node("none"), **merged}, self.own)

    def tree(self, name: str, bits: Mapping[str, Node], steps: list[Node]) -> Node:
        """A recipe with these formats and steps."""
        entries = {"name": _node(name), "seed": _node(self.sweep.seeds[0]), "bits": Node(dict(bits), self.own.place)}
        return Node({**entries, "pipeline": Node(steps, self.own.place)}, self.own.place)


def _says_none(upcycle: Node) -> bool:
    shared = upcycle.child("shared")
    return shared is not None and shared.value == "none"


def _first_wins(*rules: Mapping[str, Node]) -> dict[str, Node]:
    merged: dict[str, Node] = {}
    for each in rules:
        merged |= {target: node for target, node in each.items() if target not in merged}
    return merged


def _mapping(node: Node, *path: str) -> dict[str, Node]:
    value = _at(node, *path).value
    return dict(value) if isinstance(value, dict) else {}


def _at(node: Node, *path: str) -> Node:
    """The node at `path`, or an empty mapping in its place."""
    for key in path:
        below = node.child(key)
        if below is None or below.value is None:
            return Node({}, node.place)
        node = below
    return node


def _step(verb: str, settings: Mapping[str, Node], own: Node) -> Node:
    return Node({verb: Node(dict(settings), own.place)}, own.place)


def _node(value: Any) -> Node:
    return Node(value, MADE)
