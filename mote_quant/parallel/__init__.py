"""Many devices: a model spread over them for a training, and brought back together, packed where that is next."""

from mote_quant.parallel.codes import codes_suffice, known_by_codes
from mote_quant.parallel.devices import Spread, spread
from mote_quant.parallel.engine import adapt
from mote_quant.parallel.launcher import chosen, recipe_decides
from mote_quant.parallel.sharding import at_rest, of_kind
from mote_quant.parallel.sharings import SHARDINGS, Sharding

__all__ = [
    "SHARDINGS",
    "Sharding",
    "Spread",
    "adapt",
    "at_rest",
    "chosen",
    "codes_suffice",
    "known_by_codes",
    "of_kind",
    "recipe_decides",
    "spread",
]
