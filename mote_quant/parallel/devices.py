"""A model spread over devices for one training, and what is left of that when it is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from mote_quant.parallel.gathering import bring_back, let_go
from mote_quant.parallel.sharding import shard, twin
from mote_quant.parallel.sharings import Sharding
from mote_quant.ranks import ranks


@dataclass(frozen=True)
class Spread:
    """The model to train; with FSDP2 `sharded`, and `kept` are the parameters that are whole on every process."""

    model: nn.Module
    sharded: bool = False
    kept: list[nn.Parameter] = field(default_factory=list)


@contextmanager
def spread(
    model: nn.Module, sharding: Sharding, compute: torch.dtype | None, pack: bool, codes: bool
) -> Iterator[Spread]:
    """Inside, with FSDP2, the weights of `model` are where its sharded twin trains them; afterwards they are back.

    `compute` is what trained dense weights are multiplied in. With `pack` latent weights come back as their packed
    codes, one weight at a time: no process ever holds all of them. `codes`: see `shard`.
    """
    if sharding == "ddp" or not ranks().several:
        yield Spread(model)
        return
    trained = twin(model)
    kept = shard(trained, compute, codes)
    let_go(model, kept)
    yield Spread(trained, True, kept)
    bring_back(trained, model, pack)
