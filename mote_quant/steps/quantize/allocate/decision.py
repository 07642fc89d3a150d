"""`bits: auto` decided: units, what each choice costs and loses, the best way to spend each rule's budget."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from mote_quant.anatomy.structure import decoder_layers
from mote_quant.errors import CalibrationError
from mote_quant.recipe.schema import AutoBits, IntegerBits
from mote_quant.steps.base import Progress
from mote_quant.steps.quantize.allocate.budget import (
    check_budgets,
    code_bits,
    cost,
    limit,
    rules,
    shape_of,
    stored_bytes,
)
from mote_quant.steps.quantize.allocate.sensitivity import Meter, Sensitivity
from mote_quant.steps.quantize.allocate.solver import Option, solve
from mote_quant.steps.quantize.allocate.units import Unit, units_of
from mote_quant.steps.quantize.walk import Batch

_log = logging.getLogger(__name__)


def decide_formats(
    model: nn.Module,
    autos: Mapping[str, AutoBits],
    batches: Sequence[Batch],
    progress: Progress,
    notes: dict[str, Any],
) -> dict[str, IntegerBits]:
    """The spec of every module that `autos` names, each rule within its own budget; the model is left as it was.

    Modules of one rule are those with one and the same spec object. `notes["allocation"]` gets three tables: `rules`
    with their budgets, `mixes` (what was chosen, and every uniform choice beside it) and `units`. Raises FormatError
    for a budget below the smallest choices, CalibrationError without batches.
    """
    check_budgets(autos, model)
    if not batches:
        raise CalibrationError("bits: auto looks at samples: give quantize.calibration")
    units = units_of(autos, [path for path, _ in decoder_layers(model)])
    found = Meter(model, units, batches).measure(progress)
    decided: dict[str, IntegerBits] = {}
    tables: dict[str, list[dict[str, Any]]] = {"rules": [], "mixes": [], "units": []}
    for number, (spec, _) in enumerate(rules(autos), start=1):
        rule = Rule(model, spec, {unit: found[unit] for unit in units if unit.spec is spec})
        chosen = rule.decide()
        decided |= {name: spec.choice(format) for unit, format in chosen.items() for name in unit.modules}
        for table, rows in rule.tables(chosen).items():
            tables[table] += [{"rule": number} | row for row in rows]
    notes["allocation"] = tables
    return {name: decided[name] for name in autos}


@dataclass(frozen=True)
class Rule:
    """One rule's units with their sensitivities."""

    model: nn.Module
    spec: AutoBits
    units: Mapping[Unit, Sensitivity]

    @property
    def weights(self) -> int:
        """How many weights the rule covers."""
        return sum(math.prod(shape_of(self.model, name)) for unit in self.units for name in unit.modules)

    def decide(self) -> dict[Unit, str]:
        """The format of each unit: least predicted loss within the budget."""
        options = [
            [Option(self._cost(unit, format), found.losses[format]) for format in self.spec.choices]
            for unit, found in self.units.items()
        ]
        solution = solve(options, limit(self.spec, self.weights))
        if solution is None:
            raise CalibrationError("auto: no mix of the choices is within the budget; allow more")
        chosen = (self.spec.choices[index] for index in solution.chosen)
        return dict(zip(self.units, chosen, strict=True))

    def tables(self, chosen: Mapping[Unit, str]) -> dict[str, list[dict[str, Any]]]:
        """For the report: the budget, the mix with each uniform choice beside it, what every unit was decided by."""
        uniform = [self._mix(format, dict.fromkeys(self.units, format)) for format in self.spec.choices]
        return {
            "rules": [self._budget(chosen)],
            "mixes": [self._mix("auto", chosen), *uniform],
            "units": [self._unit(unit, chosen[unit], found) for unit, found in self.units.items()],
        }

    def _budget(self, chosen: Mapping[Unit, str]) -> dict[str, Any]:
        budget, spent = limit(self.spec, self.weights), self._spent(chosen)
        return {
            "decide": self.spec.decide,
            "sensitivity": self.spec.sensitivity,
            "modules": sum(len(unit.modules) for unit in self.units),
            "counts": "stored bytes" if self.spec.average_bits is None else "code bits",
            "budget": budget,
            "spent": spent,
            "slack": budget - spent,
        }

    def _spent(self, formats: Mapping[Unit, str]) -> int:
        return sum(self._cost(unit, format) for unit, format in formats.items())

    def _cost(self, unit: Unit, format: str) -> int:
        return sum(cost(self.spec, format, shape_of(self.model, name)) for name in unit.modules)

    def _mix(self, name: str, formats: Mapping[Unit, str]) -> dict[str, Any]:
        """One way to give every unit a format: its size, its predicted loss, and whether the budget allows it."""
        pairs = [
            (self.spec.choice(format), shape_of(self.model, module))
            for unit, format in formats.items()
            for module in unit.modules
        ]
        return {
            "format": name,
            "bytes": sum(stored_bytes(spec, shape) for spec, shape in pairs),
            "average_bits": sum(code_bits(spec, shape) for spec, shape in pairs) / self.weights,
            "predicted_kl": sum(self.units[unit].losses[format] for unit, format in formats.items()),
            "within_budget": self._spent(formats) <= limit(self.spec, self.weights),
        }

    def _unit(self, unit: Unit, format: str, found: Sensitivity) -> dict[str, Any]:
        return {
            "unit": unit.name,
            "modules": len(unit.modules),
            "format": format,
            "tokens": round(found.tokens),
            "frequency": found.frequency,
            "gate": found.gate,
        } | {f"predicted_kl_{format}": loss for format, loss in found.losses.items()}
