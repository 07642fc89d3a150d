"""`bits: auto`: which module gets how many bits, decided by calibration under a budget."""

from mote_quant.steps.quantize.allocate.budget import check_budgets
from mote_quant.steps.quantize.allocate.decision import decide_formats

__all__ = ["check_budgets", "decide_formats"]
