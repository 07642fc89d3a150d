"""Which learning rate: a few short trainings from the same start, each validated."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from mote_quant.errors import ArtifactError, TrainingError
from mote_quant.hf import random_state
from mote_quant.hf.integrity import keep
from mote_quant.progress import NOTICE
from mote_quant.qat.linear import QatLinear
from mote_quant.ranks import by_main
from mote_quant.recipe.schema import Search, Train
from mote_quant.steps.base import Context

_log = logging.getLogger(__name__)
_FILE = "search.json"
Losses = dict[str, float | None]
"""Learning rate, as text -> validation loss; None where the training broke down."""


def with_best_rate(
    model: nn.Module,
    config: Train,
    attempt: Callable[[Train, int], float],
    chosen: Collection[str],
    folder: Path,
    context: Context,
) -> Train:
    """`config` with the best of the rates it wants tried, noted for the report; as it is where it wants none.

    `attempt` trains `model` as told, and returns the loss on so many validation samples; afterwards `model` is as it
    was, bit for bit. What is known is kept in `folder`. Raises TrainingError where every rate broke down, SaveError.
    """
    search = config.search
    if search is None:
        return config
    losses = _known(folder / _FILE)
    missing = [rate for rate in search.learning_rates if repr(rate) not in losses]
    start = _copied(model, chosen) if missing else {}
    context.progress.start("searching a learning rate", len(missing))
    for index, rate in enumerate(missing):
        short = config.model_copy(update={"learning_rate": rate, "steps": search.steps})
        with _put_back(model, start):
            losses[repr(rate)] = _tried(partial(attempt, short, search.samples), rate)
        by_main(lambda: keep(folder / _FILE, json.dumps(losses)))
        context.progress.advance(index + 1)
    best = _best(search, losses)
    _log.log(NOTICE, "learning rate %g, the best of %s", best, ", ".join(f"{r:g}" for r in search.learning_rates))
    context.notes["search"] = {"losses": losses, "learning_rate": best}
    return config.model_copy(update={"learning_rate": best})


def _best(search: Search, losses: Losses) -> float:
    found = {rate: loss for rate in search.learning_rates if (loss := losses[repr(rate)]) is not None}
    if not found:
        raise TrainingError(
            f"train.search: the loss was not finite with any rate of {search.learning_rates}: try lower ones, or check "
            "the data"
        )
    return min(found, key=lambda rate: found[rate])


def _tried(attempt: Callable[[], float], rate: float) -> float | None:
    try:
        loss = attempt()
    except TrainingError as error:
        _log.info("learning rate %g: %s", rate, error.message)
        return None
    return loss if math.isfinite(loss) else None


def _copied(model: nn.Module, chosen: Collection[str]) -> dict[str, Tensor]:
    """In main memory, what a training can change: what trains, and the scales that follow latent weights."""
    layers = [name for name, module in model.named_modules() if isinstance(module, QatLinear)]
    names = {*chosen, *(f"{layer}.weight_scale" for layer in layers)}
    tensors = dict(model.named_parameters())
    return {name: tensors[name].detach().to("cpu", copy=True) for name in names if name in tensors}


@contextmanager
def _put_back(model: nn.Module, start: dict[str, Tensor]) -> Iterator[None]:
    """Whatever happens inside, parameters and random state are those of `start` afterwards."""
    try:
        with random_state.isolated():
            yield
    finally:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in start:
                    parameter.copy_(start[name])


def _known(path: Path) -> Losses:
    try:
        losses: Losses = json.loads(path.read_text()) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); delete it to search again") from error
    return losses
