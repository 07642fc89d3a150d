"""What a cell does, one file a kind. A job runs in a process of its own, whoever started that."""

from __future__ import annotations

import time
import warnings
from importlib import import_module

from mote_quant.sweeps.cells import Job, Result

KINDS = ("base", "weigh", "train", "quantize", "measure")


def run_job(job: Job) -> Result:
    """Carry out `job`; `seconds` is what it took from beginning to end, imports included."""
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _quiet()
        result: Result = import_module(f"mote_quant.sweeps.jobs.{job.kind}").run(job)
    return result | {"seconds": round(time.monotonic() - started, 3)}


def _quiet() -> None:
    """The process is the sweep's own; bars and remarks of other libraries would run into one another."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
