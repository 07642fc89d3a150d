"""What a run will take, told before it starts: memory step by step, bytes to write, and a rough time.

Counted from the plan alone; times come from rates that are measured on this machine in less than a second. Nothing
here is a promise: memory is meant to be right within a third (a tenth, of a training by one process or DDP; FSDP2 is
told too high rather than too low), times are ranges.
"""

from mote_quant.estimate.assemble import estimate
from mote_quant.estimate.rates import Rates, measure_rates
from mote_quant.estimate.report import Estimate, Part, require_room, written
from mote_quant.estimate.training import Footprint, Training
from mote_quant.machine import Machine, this_machine

__all__ = [
    "Estimate",
    "Footprint",
    "Machine",
    "Part",
    "Rates",
    "Training",
    "estimate",
    "measure_rates",
    "require_room",
    "this_machine",
    "written",
]
