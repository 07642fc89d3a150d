"""Compile the C++ kernels when the package is installed; without a compiler it is installed all the same."""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelBuildHook(BuildHookInterface):  # type: ignore[misc]
    """Adds `_mote.so` to the wheel, or leaves it beside its sources for an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files."""
        if self.target_name != "wheel":
            return
        build = _load(Path(self.root) / "mote_quant" / "kernels" / "cpu" / "build.py")
        try:
            made = build.build(flags=build.STRICT if version == "editable" else ())
        except (build.BuildError, OSError) as error:
            build.LIBRARY.unlink(missing_ok=True)
            self.app.display_warning(f"mote-quant is installed without its CPU kernels, and will be slow: {error}")
            return
        build_data["artifacts"].append(str(made.relative_to(self.root)))
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"py3-none-{platform}"


def _load(path: Path) -> Any:
    # By its path: importing the package would ask for torch, which is not there while it is being built.
    spec = importlib.util.spec_from_file_location("mote_quant_build", path)
    if spec is None or spec.loader is None:
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
