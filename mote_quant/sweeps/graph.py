"""The cells of a sweep and what they need of one another.

base -> train (every rate, first seed) -> train (the best rate, every seed) -> quantize -> measure
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

from mote_quant.errors import RequestError
from mote_quant.recipe import Recipe, load
from mote_quant.recipe.plain import settings
from mote_quant.sweeps.candidates import Candidate, teacher_of, with_run, without_teacher
from mote_quant.sweeps.cells import Job, make_job
from mote_quant.sweeps.engine import Done, Failure, Node, Outcome, following
from mote_quant.sweeps.identity import Hashes, data_identity, model_identity, tasks_identity
from mote_quant.sweeps.schema import Sweep

VALIDATION_SAMPLES = 512
BASE, WEIGH = "base", "weigh"
Outcomes = Mapping[str, Outcome]


def grid_name(trained: str, rate: float) -> str:
    """The node of a training with the first seed, to choose the rate."""
    return f"train {trained}, rate {rate}"


def train_name(trained: str, seed: int) -> str:
    """The node of a training at the chosen rate."""
    return f"train {trained}, seed {seed}"


def quantize_name(contender: str, seed: int) -> str:
    """The node of a packed model."""
    return f"quantize {contender}, seed {seed}"


def measure_name(contender: str, seed: int) -> str:
    """The node of a point of the front."""
    return f"measure {contender}, seed {seed}"


def best_rate(grid: Mapping[float, Outcome]) -> float | None:
    """The rate with the lowest validation loss; None when no training came to an end."""
    losses = {rate: outcome.result["validation_loss"] for rate, outcome in grid.items() if isinstance(outcome, Done)}
    return min(losses, key=lambda rate: losses[rate]) if losses else None


@dataclass(frozen=True)
class Graph:
    """Makes the nodes of one sweep in folder `root`. `model` and `data` say what it starts from, by hashes."""

    sweep: Sweep
    root: Path
    model: dict[str, Any]
    data: dict[str, Any]
    tasks: dict[str, Any]
    hashes: Hashes

    @classmethod
    def of(cls, sweep: Sweep, root: Path) -> Graph:
        """Hashes models and data; DataError, ModelError for what is not there."""
        hashes = Hashes(root)
        heldout = data_identity(sweep.heldout, hashes) if sweep.heldout else None
        settled = {"heldout": heldout, "max_length": _max_length(sweep), "seed": sweep.base.seed}
        data = data_identity(sweep.data, hashes) | settled
        tasks = tasks_identity(sweep.tasks, hashes)
        return cls(sweep, root, model_identity(sweep.base.model, hashes), data, tasks, hashes)

    def base(self) -> Node:
        """The dense model: a folder that is there, or one to make."""
        base = self.sweep.base
        if base.recipe is None and Path(base.model).is_dir():
            given = Done(self.model, Path(base.model).resolve(), {"train_seconds": 0.0, "tokens_trained": 0})
            return Node(BASE, (), lambda _: given)
        recipe = None if base.recipe is None else load(base.recipe, [f"seed={base.seed}", *base.settings])
        values = {"model": base.model, "seed": base.seed, "recipe": recipe and _given(recipe)}
        identity = {"model": self.model, "data": [] if recipe is None else self._data_of(recipe)}
        return Node(BASE, (), lambda _: make_job(self.root, "base", values, {}, identity))

    def weigh(self, candidates: Sequence[Candidate]) -> Node:
        """What all candidates will weigh."""
        recipes = {candidate.name: _given(without_teacher(candidate.recipe)) for candidate in candidates}
        values = {"model": self.sweep.base.model, "recipes": recipes, "tasks": self.sweep.tasks}
        identity = {"model": self.model, "tasks": self.tasks}
        return Node(WEIGH, (), lambda _: make_job(self.root, "weigh", values, {}, identity))

    def work(self, candidates: Sequence[Candidate], taking_part: Collection[str]) -> list[Node]:
        """Everything from training to measuring, for those who take part; trainings that others learn from first."""
        trained = {candidate.trained: candidate for candidate in candidates if candidate.training is not None}
        wanted = {candidate.trained for candidate in candidates if candidate.name in taking_part}
        candidates = [candidate for candidate in candidates if candidate.name in taking_part]
        trainings = [node for name in _teachers_first(trained, wanted) for node in self._trainings(trained[name])]
        finished = [self._finish(candidate, seed) for candidate in candidates for seed in self.sweep.seeds]
        return [*trainings, *(node for pair in finished for node in pair)]

    def _trainings(self, candidate: Candidate) -> list[Node]:
        name, first = candidate.trained, self.sweep.seeds[0]
        rates = {grid_name(name, rate): rate for rate in self.sweep.learning_rates}
        needs = self._training_needs(candidate, first)
        grid = [Node(node, needs, partial(self._train_job, candidate, first, rate)) for node, rate in rates.items()]
        chosen = [
            Node(
                train_name(name, seed),
                (*rates, *self._training_needs(candidate, seed)),
                partial(self._chosen, candidate, seed, rates),
                tolerant=True,
            )
            for seed in self.sweep.seeds
        ]
        return [*grid, *chosen]

    def _training_needs(self, candidate: Candidate, seed: int) -> tuple[str, ...]:
        teacher = _teacher_node(candidate, seed)
        return (BASE,) if teacher is None or teacher == BASE else (BASE, teacher)

    def _chosen(self, candidate: Candidate, seed: int, rates: Mapping[str, float], outcomes: Outcomes) -> Job | Failure:
        """The training at the rate that was best on validation, whatever became of the other rates."""
        rate = best_rate({rate: outcomes[name] for name, rate in rates.items()})
        others = {name: outcome for name, outcome in outcomes.items() if name not in rates}
        lost = following(others if rate is not None else outcomes)
        return lost or self._train_job(candidate, seed, cast(float, rate), outcomes)

    def _train_job(self, candidate: Candidate, seed: int, rate: float, outcomes: Outcomes) -> Job:
        base = _done(outcomes, BASE)
        recipe = with_run(cast(Any, candidate.training), seed, rate)
        values = {"recipe": _given(recipe), "samples": VALIDATION_SAMPLES}
        places: dict[str, Any] = {"base": str(base.model), "data": self._data(base), "teacher": None}
        identity = {"base": base.key, "data": self.data}
        teacher = _teacher_node(candidate, seed)
        if teacher is not None:
            places["teacher"] = str(_done(outcomes, teacher).model)
            identity["teacher"] = _done(outcomes, teacher).key
        elif candidate.training is not None and (named := teacher_of(candidate.training)) is not None:
            identity["teacher"] = model_identity(named, self.hashes)
        return make_job(self.root, "train", values, places, identity)

    def _finish(self, candidate: Candidate, seed: int) -> list[Node]:
        start = BASE if candidate.training is None else train_name(candidate.trained, seed)
        packed = quantize_name(candidate.name, seed)
        needs = tuple(dict.fromkeys((BASE, start)))
        return [
            Node(packed, needs, partial(self._quantize_job, candidate, seed, start)),
            Node(measure_name(candidate.name, seed), (*needs, packed), partial(self._measure_job, start, packed)),
        ]

    def _quantize_job(self, candidate: Candidate, seed: int, start: str, outcomes: Outcomes) -> Job:
        values = {"recipe": _given(candidate.tail.model_copy(update={"seed": seed}))}
        places = {"start": str(_done(outcomes, start).model), "data": self._data(_done(outcomes, BASE))}
        return make_job(self.root, "quantize", values, places, {"start": _done(outcomes, start).key, "data": self.data})

    def _measure_job(self, start: str, packed: str, outcomes: Outcomes) -> Job:
        base, measured = _done(outcomes, BASE), self.sweep.measure
        values = measured.model_dump() | {"tasks": self.sweep.tasks, "task_limit": self.sweep.task_limit}
        places = {
            "model": str(_done(outcomes, packed).model),
            "dense": str(base.model),
            "trained": None if start == BASE else str(_done(outcomes, start).model),
            "data": self._data(base),
        }
        identity = {"model": _done(outcomes, packed).key, "dense": base.key, "data": self.data, "tasks": self.tasks}
        return make_job(self.root, "measure", values, places, identity)

    def _data(self, base: Done) -> list[Any]:
        sweep = self.sweep
        heldout = None if sweep.heldout is None else _absolute(sweep.heldout)
        return [str(base.model), _absolute(sweep.data), heldout, _max_length(sweep), sweep.base.seed]

    def _data_of(self, recipe: Recipe) -> list[dict[str, Any]]:
        named = [name for step in recipe.pipeline if step.train is not None for name in step.train.sources]
        return [data_identity(name, self.hashes) for name in named]


def _done(outcomes: Outcomes, name: str) -> Done:
    return cast(Done, outcomes[name])


def _given(recipe: Recipe) -> dict[str, Any]:
    """The recipe as a mapping, without the defaults: a setting that is new must not make old cells useless."""
    return settings(recipe, given_only=True)


def _absolute(name: str) -> str:
    """A file as every process finds it, whatever folder it works in; other names as they are."""
    return str(Path(name).resolve()) if Path(name).is_file() else name


def _max_length(sweep: Sweep) -> int | None:
    return cast("int | None", sweep.train.get("max_length"))


def _teacher_node(candidate: Candidate, seed: int) -> str | None:
    """The node of the model that a training learns from; None without one, or with one that is a folder."""
    name = teacher_of(candidate.training)
    if name is None or not name.startswith("@"):
        return None
    return BASE if name == "@base" else train_name(name[1:], seed)


def _teachers_first(trained: Mapping[str, Candidate], wanted: Collection[str]) -> list[str]:
    """The names of the `wanted` trainings and of those they learn from, teachers first. RequestError for no such."""
    ordered: list[str] = []

    def add(name: str, pupils: tuple[str, ...]) -> None:
        if name not in trained or name in pupils:
            why = "learns from itself" if name in pupils else f"is no trained contender; there are {', '.join(trained)}"
            raise RequestError(f"contenders.{pupils[-1]}.train.distill.teacher: @{name} {why}")
        teacher = teacher_of(trained[name].training) or ""
        if teacher.startswith("@") and teacher != "@base":
            add(teacher[1:], (*pupils, name))
        if name not in ordered:
            ordered.append(name)

    for name in trained:
        if name in wanted:
            add(name, ())
    return ordered
