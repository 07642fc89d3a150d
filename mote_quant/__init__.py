"""mote-quant: dense Hugging Face models in, Mixtures of Ternary Experts that fit a memory budget out.

    model = mote_quant.apply("recipes/mote-digits.yaml", model)
    model.save_pretrained("out")
    model = AutoModelForCausalLM.from_pretrained("out")   # after `import mote_quant`

Importing this package imports neither torch nor transformers; it only arranges that transformers learns to read our
files as soon as it is imported itself.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mote_quant.hf.registration import register_on_import
from mote_quant.version import __version__

if TYPE_CHECKING:
    from mote_quant.errors import MoteError
    from mote_quant.hf.loading import load_model
    from mote_quant.hf.pulling import follow_loss
    from mote_quant.inspection import inspect
    from mote_quant.pipeline import apply
    from mote_quant.planning import plan
    from mote_quant.recipe import Recipe
    from mote_quant.steps.train.anywhere import trainable
    from mote_quant.sweeps.run import sweep
    from mote_quant.watching import Figures

__all__ = [
    "Figures",
    "MoteError",
    "Recipe",
    "__version__",
    "apply",
    "follow_loss",
    "inspect",
    "load_model",
    "plan",
    "sweep",
    "trainable",
]

_HOMES = {
    "Figures": "mote_quant.watching",
    "MoteError": "mote_quant.errors",
    "Recipe": "mote_quant.recipe",
    "apply": "mote_quant.pipeline",
    "follow_loss": "mote_quant.hf.pulling",
    "inspect": "mote_quant.inspection",
    "load_model": "mote_quant.hf.loading",
    "plan": "mote_quant.planning",
    "sweep": "mote_quant.sweeps.run",
    "trainable": "mote_quant.steps.train.anywhere",
}

register_on_import()


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'mote_quant' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
