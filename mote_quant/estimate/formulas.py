"""What a micro-batch needs, by hand: for models that cannot be gone through without numbers."""

from __future__ import annotations

from pathlib import Path

from mote_quant.estimate.sizes import FLOAT, Sizes
from mote_quant.estimate.timeline import BETWEEN, Held, Stretch, Timeline
from mote_quant.recipe.schema import Train

DEFAULT_LENGTH = 512
STATES = 2 * FLOAT
"""Bytes that Adam keeps for a number that trains, whatever its type."""
STATES_8BIT = 2 + 2 * FLOAT / 256
"""The same in 8 bits, with a scale for every 256."""
_LOGIT = 2 * FLOAT
"""Bytes a logit takes beside its own in a loss: as float32, and its gradient."""
_LAYER_OF_EXPERTS_TRAINS = 4
"""Inner values of an expert that its backward needs, float32: gate, activation, up, product."""


def guessed(sizes: Sizes, config: Train, gradients: int) -> Timeline:
    """A step in two moments: all activations and logits are there, or (when they are gone) all gradients."""
    passing = activations(sizes, config) + logits(sizes, config)
    after = Held(0, gradients)
    return Timeline({BETWEEN: Stretch([Held(passing), after], after)}, ())


def teaching(sizes: Sizes, config: Train) -> int:
    """A teacher, as large as its files (one that lies in no folder counts nothing), and its logits."""
    if config.distill is None:
        return 0
    files = Path(config.distill.teacher).glob("*.safetensors")
    return sum(path.stat().st_size for path in files) + logits(sizes, config)


def activations(sizes: Sizes, config: Train) -> int:
    """What the backward pass needs of the tokens of a micro-batch, all layers together."""
    inner = sizes.attention + 3 * sizes.feed_forward
    width = FLOAT if config.precision == "float32" else FLOAT // 2
    experts = sum(
        layout.top_k * (layout.intermediate_size // layout.split * _LAYER_OF_EXPERTS_TRAINS + layout.hidden_size)
        for layout in sizes.plan.layouts
    )
    # Two norms keep their input, and what they made of it, in float32.
    a_layer = 4 * sizes.hidden * FLOAT + inner * width
    return tokens(config) * (len(sizes.layers) * a_layer + experts * FLOAT)


def logits(sizes: Sizes, config: Train) -> int:
    """Logits of a micro-batch, and what their loss makes of them."""
    width = FLOAT if config.precision == "float32" else FLOAT // 2
    return tokens(config) * sizes.vocabulary * (width + _LOGIT)


def state_size(config: Train) -> float:
    """Bytes of the optimizer's states of a number of a large tensor."""
    return STATES if config.optimizer == "adamw_torch" else STATES_8BIT


def tokens(config: Train) -> int:
    """Tokens of a micro-batch."""
    return config.batch_size * length(config)


def length(config: Train) -> int:
    """Tokens of a sample, at most."""
    return config.max_length or DEFAULT_LENGTH
