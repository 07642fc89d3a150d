"""Trainings of one and of two processes on this machine, and what was foretold of the two."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.scaling import traffic
from eval.scaling.shape import Shape, built, step_of
from eval.scaling.simulate import Timing, step_seconds

WAYS = "ddp", "fsdp2"


def launched(processes: int, sharding: str, shape: Shape) -> dict[str, Any]:
    """What `eval.scaling.worker` writes; RuntimeError with its last words where it fails."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        launcher = ["torch.distributed.run", "--nproc_per_node", str(processes), "--standalone", "-m"]
        module = [*(launcher if processes > 1 else ()), "eval.scaling.worker", sharding, str(output)]
        command = [sys.executable, "-m", *module, *shape.arguments()]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
        found: dict[str, Any] = json.loads(output.read_text())
        return found


@dataclass(frozen=True)
class Counted:
    """Bytes of one process in a step: of gradients summed up, of weights gathered, of gradients summed into parts."""

    reduced_everywhere: int
    gathered: int
    reduced: int

    @classmethod
    def of(cls, found: dict[str, Any]) -> Counted:
        """From what the worker wrote."""
        exchanges: dict[str, int] = found["exchanges"]
        gathered = sum(size for name, size in exchanges.items() if "allgather" in name)
        reduced = sum(size for name, size in exchanges.items() if "reduce_scatter" in name)
        everywhere = sum(size for name, size in exchanges.items() if "allreduce" in name)
        return cls(found["gradients"] or everywhere, gathered, reduced)

    def sent(self, processes: int) -> float:
        """Bytes that a ring makes of them."""
        return traffic.passed_on(2 * self.reduced_everywhere + self.gathered + self.reduced, processes)


def foretold(shape: Shape, sharding: str) -> Counted:
    """The same by the arithmetic."""
    step = step_of(built(shape))
    if sharding == "ddp":
        return Counted(step.gradients, 0, 0)
    return Counted(step.kept, traffic.gathered(step), traffic.reduced(step))


def compared(shape: Shape, bandwidth: float) -> list[dict[str, Any]]:
    """A row for each way to share; `bandwidth` of a ring of two processes here (`exchange_rate`)."""
    alone = statistics.median(launched(1, "none", shape)["seconds"])
    step, rows = step_of(built(shape)), []
    for sharding in WAYS:
        found = launched(2, sharding, shape)
        told, counted = foretold(shape, sharding), Counted.of(found)
        # Half of the samples; backward takes about twice as long as forward.
        part = alone / 2 / len(step.layers)
        timing = Timing(part / 3, part * 2 / 3, 0.0, 0.0, bandwidth)
        rows.append(
            {
                "sharding": sharding,
                "foretold_bytes": round(told.sent(2)),
                "bytes": round(counted.sent(2)),
                "alone_seconds": alone,
                # gloo works on the very cores that compute: nothing is overlapped.
                "foretold_seconds": step_seconds(step, timing, 2, sharding, overlap=False),
                "seconds": statistics.median(found["seconds"]),
                # Beyond the two cores of the run itself somebody else was at work: its seconds say little.
                "load": os.getloadavg()[0],
            }
        )
    return rows
