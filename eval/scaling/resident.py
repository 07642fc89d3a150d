"""Peak memory of a training step on each of several processes, beside what `plan` foretells.

    MALLOC_MMAP_THRESHOLD_=65536 MALLOC_TRIM_THRESHOLD_=65536 \\
        torchrun --nproc_per_node 2 --standalone -m eval.scaling.resident ddp|fsdp2 SAMPLES OUTPUT

The settings of malloc have glibc give freed memory back: what it keeps for later is not what a step needs. Writes JSON.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
from pathlib import Path

import torch

from eval.scaling import worker
from eval.scaling.shape import Shape, built
from mote_quant.estimate import Training
from mote_quant.estimate.sizes import Sizes
from mote_quant.parallel import of_kind
from mote_quant.planning import plan_on, skeleton_for
from mote_quant.ranks import gathered, join, leave, ranks
from mote_quant.recipe import load

SHAPE, SMALL = Shape(512, 1536, 4, 4, 4096, 128, 1), Shape(64, 96, 2, 2, 96, 16, 1)


def main(sharding: str, samples: int, output: Path) -> None:
    """See the module's docstring."""
    torch.set_num_threads(1)
    here = join()
    # The first training of a process takes what every later one has already.
    _train(SMALL, sharding, 2)
    gc.collect()
    before = _kilobytes("VmRSS")
    _train(SHAPE, sharding, samples // here.world)
    peaks = gathered(1024 * (_kilobytes("VmHWM") - before))
    if here.main:
        output.write_text(json.dumps({"peaks": peaks, "foretold": _foretold(sharding, samples, here.world)}))
    leave()


def _train(shape: Shape, sharding: str, samples: int) -> None:
    """Two steps, and one whose peak counts."""
    model = built(shape)
    shared = worker.shared(model, sharding) if ranks().several else model
    groups = of_kind([{"params": [parameter for parameter in shared.parameters() if parameter.requires_grad]}])
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    tokens = shape.tokens(samples, ranks().rank)
    worker.step(shared, optimizer, tokens)
    worker.step(shared, optimizer, tokens)
    gc.collect()
    # From now on the peak is counted anew.
    Path("/proc/self/clear_refs").write_text("5")
    worker.step(shared, optimizer, tokens)


def _kilobytes(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) if found else 0


def _foretold(sharding: str, samples: int, world: int) -> int:
    train = {"what": ["routed", "router"], "data": "random", "steps": 2, "batch_size": samples}
    steps = [{"upcycle": {"experts": SHAPE.experts}}, {"train": train | {"max_length": SHAPE.length}}, "quantize"]
    recipe = load({"name": "resident", "bits": {"routed": "ternary"}, "pipeline": steps})
    skeleton = skeleton_for(SHAPE.config())
    sizes = Sizes(plan_on(recipe, skeleton), skeleton)
    return Training(sizes, recipe.pipeline[1].config, world).footprint(sharding).total


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sharding", choices=["ddp", "fsdp2"])
    parser.add_argument("samples", type=int, help="of all processes, in a step")
    parser.add_argument("output", type=Path, help="where the JSON goes")
    main(**vars(parser.parse_args()))
