"""These tests need a GPU, or Triton's interpreter: `test_triton_interpreter.py` starts them under it."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from mote_quant.kernels import triton

collect_ignore_glob = [] if triton.installed() and find_spec("triton") is not None else ["test_*.py"]


@pytest.fixture
def device() -> torch.device:
    """Where kernels run."""
    return torch.device("cpu" if triton.interpreted() else "cuda")
