"""Dense feed-forward blocks become mixtures."""

from mote_quant.steps.upcycle.layouts import plan_layouts
from mote_quant.steps.upcycle.run import run

__all__ = ["plan_layouts", "run"]
