"""What a training step holds over time, told layer by layer: of layers that are alike one speaks for all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class Held:
    """Bytes at one moment: `activations` (all that is temporary), `gradients` of parameters, and what is there for the
    exchange with other processes.
    """

    activations: int = 0
    gradients: int = 0
    exchange: int = 0

    def __add__(self, other: Held) -> Held:
        return Held(self.activations + other.activations, self.gradients + other.gradients)

    def weighed(self, share: float) -> float:
        """All of it, gradients counted to this share."""
        return self.activations + share * self.gradients + self.exchange


@dataclass
class Stretch:
    """A part of a step: what is held beyond its beginning, after every allocation (`tops`) and at its end."""

    tops: list[Held] = field(default_factory=list)
    end: Held = field(default_factory=Held)


Place = tuple[str, int]
"""("forward" or "backward", layer), or (anything else, 0): before the layers, between their two passes, after them."""


@dataclass(frozen=True)
class Timeline:
    """The stretches of one step. `like` names, for every layer of the model, the one that was traced in its place."""

    stretches: Mapping[Place, Stretch]
    like: Sequence[int]

    def peak(self, share: float = 1.0, exchange: Callable[[Place], int] = lambda place: 0) -> Held:
        """The fullest moment of the step, where a device holds this share of the gradients.

        `exchange` says how much is there at a place for the exchange with others.
        """
        return max(self._moments(exchange), key=lambda held: held.weighed(share), default=Held())

    def _moments(self, exchange: Callable[[Place], int]) -> Iterator[Held]:
        base = Held()
        for place in self._order():
            stretch = self.stretches.get(place, Stretch())
            yield from (replace(base + top, exchange=exchange(place)) for top in stretch.tops)
            base += stretch.end

    def _order(self) -> Iterable[Place]:
        yield BEFORE
        yield from (("forward", layer) for layer in self.like)
        yield BETWEEN
        yield from (("backward", layer) for layer in reversed(self.like))
        yield AFTER


BEFORE: Place = ("before", 0)
BETWEEN: Place = ("between", 0)
AFTER: Place = ("after", 0)
