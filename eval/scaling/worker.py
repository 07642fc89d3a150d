"""One process of a measured training: `torchrun --nproc_per_node N -m eval.scaling.worker SHARDING OUTPUT`.

Trains an up-cycled model on random tokens by the product's own sharding and writes as JSON, on rank 0, the bytes this
process handed to every kind of exchange in a step and the seconds of one. Alone it tells how long its parts take.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eval.scaling.shape import SAMPLES, Shape, built
from mote_quant.ranks import join, leave, ranks


class Traffic(TorchDispatchMode):
    """Counts bytes of the largest tensor of every exchange inside, by its name: what is whole before or after it."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note an exchange, and carry everything out."""
        if func.namespace == "c10d":
            sizes = [leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.bytes[func._opname] += max(sizes, default=0)
        return func(*args, **(kwargs or {}))


def main() -> None:
    """See the module's docstring."""
    sharding, output, shape = sys.argv[1], Path(sys.argv[2]), Shape(*map(int, sys.argv[3:]))
    torch.set_num_threads(1)
    here = join()
    model = built(shape)
    wrapped = shared(model, sharding) if here.several else model
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-4)
    own = shape.tokens(SAMPLES // here.world, here.rank)
    # The first step of DDP lays out its buckets, and FSDP2 gathers anew.
    step(wrapped, optimizer, own)
    seconds = [_timed(wrapped, optimizer, own) for _ in range(shape.steps)]
    counted, exchanged = _counted(wrapped, optimizer, own)
    if here.main:
        output.write_text(json.dumps({"exchanges": exchanged, "gradients": counted, "seconds": sorted(seconds)}))
    if here.several:
        # gloo's threads want the interpreter to let go of exchanges begun in a backward, and a group that ends waits
        # for these threads without giving it away.
        dist.barrier()
    leave()


def shared(model: nn.Module, sharding: str) -> nn.Module:
    """`model` as one of several processes trains it: wrapped, or its weights in parts."""
    if sharding == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    from mote_quant.parallel.sharding import shard

    kept = shard(model, codes=True)
    cast(Any, model).kept = [parameter for parameter in kept if parameter.requires_grad]
    return model


def _counted(model: nn.Module, optimizer: Any, tokens: Tensor) -> tuple[int, dict[str, int]]:
    """Bytes of gradients that DDP hands to its hook (0 without DDP), and of every exchange, by its name."""
    hooked: list[int] = []
    if isinstance(model, nn.parallel.DistributedDataParallel):
        # torch compares annotations of a hook with types, and here they are texts: this one has none.
        model.register_comm_hook(hooked, lambda state, bucket: _noted(state, bucket))
    with Traffic() as traffic:
        step(model, optimizer, tokens)
    return sum(hooked), dict(traffic.bytes)


def _noted(sizes: list[int], bucket: Any) -> Any:
    """Note a bucket, and exchange it before going on: no callback of Python is left in gloo's threads."""
    sizes.append(bucket.buffer().nbytes)
    dist.all_reduce(bucket.buffer().div_(ranks().world))
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer())
    return done


def step(model: nn.Module, optimizer: Any, tokens: Tensor) -> None:
    """Forward, backward, and the optimizer's move."""
    cast(Any, model)(input_ids=tokens, labels=tokens).loss.backward()
    if hasattr(model, "kept"):
        from mote_quant.parallel.sharding import average

        average(cast(Any, model).kept)
    optimizer.step()
    optimizer.zero_grad()


def _timed(model: nn.Module, optimizer: Any, tokens: Tensor) -> float:
    if ranks().several:
        dist.barrier()
    started = time.perf_counter()
    step(model, optimizer, tokens)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
