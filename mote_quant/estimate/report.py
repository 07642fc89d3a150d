"""The estimate as data: what each part of a run takes, and whether the machine has it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mote_quant.errors import RequestError
from mote_quant.estimate.rates import Rates
from mote_quant.estimate.training import Training
from mote_quant.machine import Machine
from mote_quant.memory.units import human_bytes
from mote_quant.parallel.sharings import Sharding

Seconds = tuple[float, float]
"""The least and the most that is to be expected."""


@dataclass(frozen=True)
class Part:
    """A stretch of the run. `memory` is the most it holds at a time, on the accelerator where `on_accelerator`."""

    name: str
    memory: int
    seconds: Seconds | None = None
    on_accelerator: bool = False


@dataclass(frozen=True)
class Disk:
    """Bytes: the finished model, the most that lies in the output folder while it is made, and temporary files.

    `lessons`: what teachers say at most, in the folders that `distill.cache` names; less where rows come again.
    """

    output: int
    running: int
    temporary: int
    lessons: int = 0


@dataclass(frozen=True)
class Estimate:
    """What a run will take. `streamed`: layer by layer; else `why_not` says what stands against that.

    `there`: bytes of what it writes that lie in the output folder already. `trainings`: its train steps,
    and `shardings` how several processes may share them.
    """

    parts: tuple[Part, ...]
    disk: Disk
    machine: Machine
    rates: Rates | None
    why_not: str | None
    there: int = 0
    trainings: tuple[Training, ...] = ()
    shardings: tuple[Sharding, ...] = ()

    @property
    def streamed(self) -> bool:
        """Whether the model goes through memory layer by layer."""
        return self.why_not is None

    @property
    def peak(self) -> int:
        """The most main memory that any part holds."""
        return max(part.memory for part in self.parts if not part.on_accelerator)

    @property
    def accelerator_peak(self) -> int:
        """The same on the accelerator."""
        return max((part.memory for part in self.parts if part.on_accelerator), default=0)

    @property
    def seconds(self) -> Seconds | None:
        """All parts together."""
        known = [part.seconds for part in self.parts if part.seconds is not None]
        return (sum(low for low, _ in known), sum(high for _, high in known)) if known else None

    @property
    def to_write(self) -> int:
        """Bytes that the disk has to have free."""
        return max(self.disk.running - self.there, 0)

    def warnings(self) -> list[str]:
        """What will probably not go well on this machine."""
        machine = self.machine
        return [
            f"this run needs about {human_bytes(needed)} of {what}, {human_bytes(free)} is free: {advice}"
            for needed, free, what, advice in (
                (self.to_write, machine.free_disk, "disk", _MORE_DISK),
                (self.peak, machine.free_memory, "memory", _LESS_MEMORY),
                (self.accelerator_peak, machine.accelerator_free, f"memory on {machine.accelerator}", _LESS_MEMORY),
            )
            if free is not None and needed > free
        ]

    def to_dict(self) -> dict[str, Any]:
        """What `--json` prints under `estimate`."""
        return {
            "streamed": self.streamed,
            "why_not_streamed": self.why_not,
            "parts": [asdict(part) for part in self.parts],
            "training": [training.to_dict(way) for training in self.trainings for way in self.shardings],
            "peak_bytes": self.peak,
            "accelerator_peak_bytes": self.accelerator_peak,
            "seconds": self.seconds,
            "disk": asdict(self.disk),
            "machine": self.machine.to_dict(),
            "rates": None if self.rates is None else self.rates.to_dict(),
            "warnings": self.warnings(),
        }


_MORE_DISK = "`mote-quant apply` would refuse it. Free space, or name an --output elsewhere"
_LESS_MEMORY = (
    "it may be killed. A smaller train.batch_size or max_length, fewer experts, a smaller calibration.batch_size or "
    "another machine would help"
)


def require_room(estimate: Estimate, output: Path) -> None:
    """RequestError where the disk cannot hold what the run writes into `output`."""
    free, needed = estimate.machine.free_disk, estimate.to_write
    if free is not None and needed > free:
        raise RequestError(
            f"{output} lies on a disk with {human_bytes(free)} free, and this run writes {human_bytes(needed)} there "
            f"({_shares(estimate.disk)}): free space, or name another --output"
        )


def written(folder: Path) -> int:
    """Bytes in all files below `folder`; 0 where there is none."""
    files = {(found := path.stat()).st_ino: found.st_size for path in folder.rglob("*") if path.is_file()}
    return sum(files.values())


def _shares(disk: Disk) -> str:
    kept = disk.running - disk.output
    return f"the model {human_bytes(disk.output)}" + (f", checkpoints {human_bytes(kept)}" if kept > 0 else "")
