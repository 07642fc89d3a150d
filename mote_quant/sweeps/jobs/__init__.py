"""What a cell does, one file a kind. A job runs in a process of its own, whoever started that."""

from __future__ import annotations

import time
import traceback
import warnings
from importlib import import_module

from mote_quant.errors import CellFailedError, MoteError
from mote_quant.provenance import versions
from mote_quant.sweeps.cells import Job, Result, worded

TRACEBACK = "error.txt"


def run_job(job: Job) -> Result:
    """Carry out `job`; `seconds` is what it took from beginning to end, imports included."""
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _quiet()
        result = _carried_out(job)
    return result | {"seconds": round(time.monotonic() - started, 3), "commit": versions()["commit"]}


def _carried_out(job: Job) -> Result:
    """CellFailedError for whatever is not ours: it must travel between processes, and its traceback be kept."""
    try:
        result: Result = import_module(f"mote_quant.sweeps.jobs.{job.kind}").run(job)
    except MoteError:
        raise
    except (Exception, SystemExit) as error:
        job.folder.mkdir(parents=True, exist_ok=True)
        (job.folder / TRACEBACK).write_text(traceback.format_exc())
        raise CellFailedError(f"{worded(error)} (see {job.folder / TRACEBACK})") from None
    return result


def _quiet() -> None:
    """The process is the sweep's own; bars and remarks of other libraries would run into one another."""
    import datasets
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
