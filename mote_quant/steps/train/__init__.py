"""Train what the recipe names, and nothing else."""

from mote_quant.steps.train.compiling import require_compiler
from mote_quant.steps.train.libraries import require_library
from mote_quant.steps.train.run import run

__all__ = ["require_compiler", "require_library", "run"]
