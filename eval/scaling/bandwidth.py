"""The bandwidth of a ring of processes: `torchrun --nproc_per_node 2 -m eval.scaling.bandwidth OUTPUT`."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from eval.scaling.traffic import passed_on

_NUMBERS, _TRIES = 8 * 2**20, 6


def main() -> None:
    """Bytes a second that a process sends while tensors of 32 MiB are summed up, the best of some tries."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    tensor, seconds = torch.zeros(_NUMBERS), []
    for _ in range(_TRIES):
        dist.barrier()
        started = time.perf_counter()
        dist.all_reduce(tensor)
        seconds.append(time.perf_counter() - started)
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(repr(2 * passed_on(tensor.nbytes, dist.get_world_size()) / min(seconds)))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
