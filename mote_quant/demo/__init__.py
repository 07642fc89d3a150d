"""The main job on embedded data, end to end: what `make demo` runs."""

from mote_quant.demo.run import run

__all__ = ["run"]
