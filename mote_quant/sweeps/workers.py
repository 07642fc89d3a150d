"""Worker processes on this machine: one process a slot, so that a cell that dies takes nothing else along."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context

from mote_quant.errors import CellDiedError
from mote_quant.sweeps.cells import Job, Result
from mote_quant.sweeps.jobs import run_job

DIED = (
    "its process died, most likely for want of memory: run fewer --jobs at once (or a script calls sweep outside of "
    'if __name__ == "__main__")'
)
_LOOKS_EVERY = 0.5
_THREADS = "OMP_NUM_THREADS"


class LocalWorkers:
    """`slots` processes that share the cores of this machine; each is started when first needed."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._pools: list[ProcessPoolExecutor | None] = [None] * slots
        self._busy: set[int] = set()

    def submit(self, job: Job) -> Future[Result]:
        """Begin `job` in a free slot. Its future fails with CellDiedError when the process dies."""
        slot = next(index for index in range(self.slots) if index not in self._busy)
        self._busy.add(slot)
        outer: Future[Result] = Future()
        with _threads(max(1, (os.cpu_count() or 1) // self.slots)):
            inner = self._pool(slot).submit(run_job, job)
        inner.add_done_callback(lambda done: self._hand_over(slot, done, outer))
        return outer

    def close(self) -> None:
        """End all processes, those at work too."""
        for slot, pool in enumerate(self._pools):
            if pool is not None:
                _end(pool, at_work=slot in self._busy)

    def _pool(self, slot: int) -> ProcessPoolExecutor:
        pool = self._pools[slot]
        if pool is None:
            pool = self._pools[slot] = ProcessPoolExecutor(
                1, get_context("spawn"), _bound_to_the_parent, (os.getpid(),)
            )
        return pool

    def _hand_over(self, slot: int, inner: Future[Result], outer: Future[Result]) -> None:
        error = inner.exception()
        if isinstance(error, BrokenProcessPool):
            self._pools[slot] = None
            error = CellDiedError(DIED)
        self._busy.discard(slot)
        if error is None:
            outer.set_result(inner.result())
        else:
            outer.set_exception(error)


def _end(pool: ProcessPoolExecutor, at_work: bool) -> None:
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=not at_work, cancel_futures=True)
    if at_work:
        for process in processes:
            process.terminate()


def _bound_to_the_parent(parent: int) -> None:
    """Ctrl-C reaches every process of a terminal, but the parent decides; and nobody works on when it is gone.

    A cell that outlived its sweep would write into the folder that the next run continues.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOKS_EVERY)
    os._exit(1)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Inside, new processes are told to use `count` threads, unless the user has said so already."""
    if _THREADS in os.environ:
        yield
        return
    os.environ[_THREADS] = str(count)
    try:
        yield
    finally:
        del os.environ[_THREADS]
