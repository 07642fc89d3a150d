"""Workers on a Ray cluster. The sweep's folder must lie where every node sees it under the same path."""

from __future__ import annotations

import socket
from concurrent.futures import Future
from typing import Any

from mote_quant.errors import CellDiedError, MissingExtraError, MoteError, RequestError, first_line
from mote_quant.sweeps.cells import Job, Result
from mote_quant.sweeps.jobs import run_job

_PATIENCE = 5.0


class RayWorkers:
    """`slots` cells at a time, each a Ray task; `address` is that of the cluster, or `local`."""

    def __init__(self, address: str, slots: int, gpus: float = 0.0) -> None:
        """Each cell has `gpus` of the cluster's for itself.

        MissingExtraError without ray; RequestError when no cluster answers at `address`.
        """
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("a Ray cluster needs ray: pip install 'mote-quant[ray]'") from error
        _check_reachable(address)
        try:
            # Two processes must never share a run folder: a task that was lost is the sweep's to begin again.
            ray.init(address=address, log_to_driver=False, ignore_reinit_error=True, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise RequestError(f"no Ray cluster can be reached at {address}: {first_line(error)}") from error
        self.slots = slots
        self._ray: Any = ray
        self._task: Any = ray.remote(max_calls=0, max_retries=0, num_gpus=gpus)(run_job)

    def submit(self, job: Job) -> Future[Result]:
        """Begin `job` somewhere on the cluster. Its future fails with CellDiedError when the process dies."""
        outer: Future[Result] = Future()
        inner: Future[Result] = self._task.remote(job).future()
        inner.add_done_callback(lambda done: self._hand_over(done, outer))
        return outer

    def close(self) -> None:
        """Leave the cluster; what is running there is cancelled with us."""
        self._ray.shutdown()

    def _hand_over(self, inner: Future[Result], outer: Future[Result]) -> None:
        error = inner.exception()
        if error is None:
            outer.set_result(inner.result())
            return
        outer.set_exception(self._ours(error))

    def _ours(self, error: BaseException) -> BaseException:
        if isinstance(error, self._ray.exceptions.RayTaskError):
            cause: BaseException = error.cause
            return cause if isinstance(cause, MoteError) else RuntimeError(f"{type(cause).__name__}: {cause}")
        if isinstance(error, self._ray.exceptions.RayError):
            return CellDiedError(f"its Ray worker is gone ({first_line(error)}); run the same command again")
        return error


def _check_reachable(address: str) -> None:
    """RequestError when nobody listens there: Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return
    try:
        socket.create_connection((host, int(port)), timeout=_PATIENCE).close()
    except (OSError, ValueError) as error:
        raise RequestError(f"no Ray cluster can be reached at {address}: {error}") from error
