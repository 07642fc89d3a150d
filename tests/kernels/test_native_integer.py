"""The integer kernels in a program of their own, under sanitizers: no read or write beyond any buffer."""

from __future__ import annotations

from tests.kernels.native_build import run_check


def test_integer_kernels_stay_inside_their_buffers(tmp_path):
    printed = run_check("check_integer", ("integer", "level", "parallel", "counters", "scratch"), tmp_path)
    assert " 0 failures" in printed
