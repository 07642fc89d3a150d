"""The processes that work on one run together, as `torchrun` or `accelerate launch` started them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mote_quant.errors import MoteError, RequestError, RunError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a process waits for the others: one of them may be writing a large model."""


@dataclass(frozen=True)
class Ranks:
    """This process is number `rank` of `world`; number 0 is the one that writes."""

    rank: int = 0
    world: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world > 1


def ranks() -> Ranks:
    """The group this process has joined; alone where it has not."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return Ranks()
    return Ranks(dist.get_rank(), dist.get_world_size())


def launched() -> Ranks:
    """What the launcher says, before anybody has joined (from its environment; asks nothing of torch).

    RequestError for what no launcher says: a rank without its world would run alone, and speak of nothing.
    """
    told = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    for name, value in told.items():
        if not value.isdecimal():
            raise RequestError(f"{name}={value} in the environment is no number: start with torchrun, or unset it")
    found = Ranks(int(told["RANK"]), int(told["WORLD_SIZE"]))
    if found.rank >= found.world:
        raise RequestError(
            f"the environment says RANK {found.rank} and WORLD_SIZE {found.world}, and ranks count from 0: start with "
            "torchrun, which sets both, or unset them"
        )
    return found


def join() -> Ranks:
    """Join the group of a launcher, if there is one and nobody has yet. RequestError where that cannot be."""
    if not launched().several or ranks().several:
        return ranks()
    import torch
    from accelerate import PartialState

    try:
        PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise RequestError(
            f"the {launched().world} processes cannot find each other: {error}. Start them with torchrun or accelerate "
            "launch"
        ) from error
    return ranks()


def leave() -> None:
    """Part from the group, for a program that is done with it."""
    if ranks().several:
        import torch.distributed as dist

        dist.destroy_process_group()


def together(work: Callable[[], T]) -> T:
    """`work()` on every rank; where it failed on one, it has failed on all. Returns this rank's result."""
    if not ranks().several:
        return work()
    result, failure = _tried(work)
    raise_any(failure)
    return cast(T, result)


def by_main(work: Callable[[], T]) -> T:
    """`work()` by the first rank only; its result (small, picklable), or its error, for all."""
    import torch.distributed as dist

    here = ranks()
    if not here.several:
        return work()
    told: list[Any] = [_tried(work) if here.main else None]
    dist.broadcast_object_list(told, src=0)
    result, failure = told[0]
    if failure is not None:
        raise failure
    return cast(T, result)


def raise_any(failure: Exception | None) -> None:
    """Raise the first of what the ranks bring here (None: all is well); to be called by all of them."""
    failures = gathered(failure)
    for rank, found in enumerate(failures):
        if found is not None:
            raise found if rank == ranks().rank or isinstance(found, MoteError) else RunError(str(found))


def gathered(value: T) -> list[T]:
    """`value` (small, picklable) of every rank, in order."""
    import torch.distributed as dist

    here = ranks()
    if not here.several:
        return [value]
    values: list[Any] = [None] * here.world
    dist.all_gather_object(values, value)
    return values


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder of all ranks together, which lie on one machine, gone afterwards."""
    with ExitStack() as stack:
        yield Path(by_main(lambda: stack.enter_context(TemporaryDirectory())))


@contextmanager
def company() -> Iterator[None]:
    """An error out of here that says nothing but that others are gone becomes a RunError that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not about_others(error):
            raise
        raise RunError(
            f"process {ranks().rank} of {ranks().world} lost the others, of which one has failed or was killed "
            f"({next(iter(str(error).splitlines()), '')[:120]}): see what that one said, and start all of them again "
            "with the same command; they go on from the last checkpoint"
        ) from error


def about_others(error: Exception) -> bool:
    """Whether `error` says nothing but that another rank is gone."""
    import torch.distributed as dist

    if isinstance(error, MoteError) or not ranks().several:
        return False
    # gloo has no class of errors of its own.
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower() or "by peer" in str(error)


def mean(value: Tensor) -> Tensor:
    """The mean of `value`, which has no gradient, over all ranks; all of them have to ask."""
    import torch.distributed as dist

    here = ranks()
    if not here.several:
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total / here.world


def _tried(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except Exception as error:
        return None, _portable(error)


def _portable(error: Exception) -> Exception:
    """Something that another process can be told of: ours are, of others only what they say is sure to be."""
    import pickle

    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RunError(f"{type(error).__name__}: {error}")
    return error
