"""Give every module the format `bits` names for it."""

from mote_quant.steps.quantize.run import run

__all__ = ["run"]
