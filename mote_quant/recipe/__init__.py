"""What the user asks for: the recipe, its target grammar, and loading with located errors."""

from mote_quant.recipe.catalogue import shipped
from mote_quant.recipe.dump import dump
from mote_quant.recipe.load import Source, load
from mote_quant.recipe.schema import ROLES, Bits, FloatBits, IntegerBits, Recipe, Step, TernaryBits
from mote_quant.recipe.targets import Candidate, assign, matches, select

__all__ = [
    "ROLES",
    "Bits",
    "Candidate",
    "FloatBits",
    "IntegerBits",
    "Recipe",
    "Source",
    "Step",
    "TernaryBits",
    "assign",
    "dump",
    "load",
    "matches",
    "select",
    "shipped",
]
