"""Tell other libraries about our classes, whichever package is imported first, at no cost while it is not used."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

WATCHED = {
    "transformers.quantizers.auto": "mote_quant.hf.quantizer",
    "peft.tuners.lora.model": "mote_quant.hf.adapters",
}
"""A module of theirs, and the module of ours that enters our classes into its tables."""


def register_on_import() -> None:
    """Register now with what is loaded, with the rest as soon as it is."""
    for theirs in WATCHED:
        if theirs in sys.modules:
            _register(theirs)
        elif not any(isinstance(finder, _Watcher) and finder.watched == theirs for finder in sys.meta_path):
            sys.meta_path.insert(0, _Watcher(theirs))


def _register(theirs: str) -> None:
    module = import_module(WATCHED[theirs])
    # When that module is itself what brought theirs in, it is only half there now and registers at its own end.
    if hasattr(module, "register"):
        module.register()


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds one module, by asking the other finders, and registers after it has run."""

    def __init__(self, watched: str) -> None:
        self.watched = watched

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.watched:
            return None
        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisterAfter(spec.loader)
        return spec


class _RegisterAfter(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register(module.__name__)
