"""Train what the recipe names, and nothing else."""

from mote_quant.steps.train.compiling import require_compiler
from mote_quant.steps.train.libraries import require_library, require_shards, works_on_shards
from mote_quant.steps.train.run import run

__all__ = ["require_compiler", "require_library", "require_shards", "run", "works_on_shards"]
