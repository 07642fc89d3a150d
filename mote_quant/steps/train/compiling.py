"""torch.compile for a training run, of models with mixture layers too."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from mote_quant.errors import MissingExtraError, RequestError, first_line
from mote_quant.moe import blocks

BACKEND = "inductor"
_COMPILERS = {"darwin": "clang++", "win32": "cl"}


def require_compiler(what: str = "train.compile") -> None:
    """MissingExtraError without the C++ compiler that torch.compile calls for `what` ($CXX, or g++)."""
    name = os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++")
    if shutil.which(name) is None:
        raise MissingExtraError(
            f"{what} needs a C++ compiler, and {name} is not there: install one (apt-get install g++), name yours in "
            "the environment variable CXX, or leave it out"
        )


@contextmanager
def compiled(model: nn.Module) -> Iterator[None]:
    """Inside, `model` runs compiled; no module and no name changes, and afterwards it runs as before.

    How many tokens an expert gets is known only at run time: a mixture layer itself runs as it is, between compiled
    parts, and its experts are compiled one by one; on a GPU those in training for ternary or binary codes run together
    instead (`moe.trained.grouped_feed_forward`), which no graph of one expert could. RequestError where torch cannot
    compile the model.
    """
    from torch._dynamo.exc import TorchDynamoException

    require_compiler()
    mixtures = [cast(Any, block) for block in blocks(model).values()]
    shared = [block.shared_expert for block in mixtures if block.layout.shared]
    regions = [model, *shared, *(expert for block in mixtures for expert in block.experts)]
    for block in mixtures:
        block.forward = cast(Any, torch.compiler).disable(block.forward)
    for region in regions:
        region.compile(backend=BACKEND)
    try:
        yield
    except TorchDynamoException as error:
        first = first_line(error)
        raise RequestError(f"torch.compile failed on this model: {first}; leave train.compile out") from error
    finally:
        for block in mixtures:
            del block.forward
        for region in regions:
            region._compiled_call_impl = None
