"""lm-eval tasks on a model in memory: any task of lm-eval, and offline ones of our own (`eval/tasks/`)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any

from torch import nn

from mote_quant.data.text import tokenizer_of
from mote_quant.errors import DataError, MissingExtraError, MoteError, RequestError, first_line
from mote_quant.evaluate.mode import measured
from mote_quant.hf.random_state import isolated
from mote_quant.recipe.near import did_you_mean
from mote_quant.steps.quantize.backends.extras import contained

_PACKAGE = Path(__file__).resolve().parents[1]
_LIBRARY, _ADVICE = "lm_eval", "pip install 'mote-quant[eval]'"
_SEED = 1234  # lm-eval's own, for the choice of few-shot examples


def own_folder() -> Path:
    """Where our own tasks are: in a wheel inside the package, in a checkout beside it."""
    inside = _PACKAGE / "tasks"
    return inside if inside.is_dir() else _PACKAGE.parent / "eval" / "tasks"


def known_tasks(folders: Sequence[Path] = (), *, shipped: bool = False) -> list[str]:
    """Names of tasks, groups and tags: ours and those of `folders`; with `shipped` lm-eval's too (takes ~15 s once)."""
    with _library():
        return list(_manager(tuple(folders), shipped).all_tasks)


def check_tasks(tasks: Sequence[str], folders: Sequence[Path] = (), *, data: bool = False) -> None:
    """RequestError that names all of `tasks` nobody knows, with near misses; MissingExtraError without lm-eval.

    With `data` also what `run_tasks` raises for tasks whose data cannot be had; what is not here yet is downloaded.
    """
    manager = _known_by(tasks, tuple(folders))
    if data:
        with isolated(), _library():
            _opened(manager, tasks)


def run_tasks(
    model: nn.Module,
    processor: Any,
    tasks: Sequence[str],
    *,
    folders: Sequence[Path] = (),
    limit: int | None = None,
    batch_size: int = 8,
) -> dict[str, float]:
    """Run lm-eval `tasks` on `model`: {"<task>.<metric>": value}, and "<task>.samples", how many were asked.

    `folders` hold more task files, `limit` is the most samples a task. Nothing is downloaded for tasks whose data are
    here. RequestError for unknown tasks, DataError for tasks whose data cannot be had, MissingExtraError.
    """
    manager = _known_by(tasks, tuple(folders))
    tokenizer = tokenizer_of(processor, "lm-eval")
    with measured(model), isolated(), _library():
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        opened = _opened(manager, tasks)
        # It may give a tokenizer a padding token; the caller's stays as it is.
        wrapped = HFLM(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size)
        # Not its simple_evaluate, which seeds the whole process, looks the model up on the hub and lists the machine.
        found = evaluate(lm=wrapped, task_dict=opened, limit=limit, bootstrap_iters=0, log_samples=False)
    return dict(_flat(found))


def _known_by(tasks: Sequence[str], folders: tuple[Path, ...]) -> Any:
    """The smallest TaskManager that knows all `tasks`."""
    if isinstance(tasks, str) or not tasks:
        raise RequestError("tasks must be a list of at least one name of an lm-eval task")
    absent = [folder for folder in folders if not Path(folder).is_dir()]
    if absent:
        raise RequestError(f"no such folder of tasks: {', '.join(map(str, absent))}")
    with _library():
        for shipped in (False, True):
            manager = _manager(folders, shipped)
            unknown = [task for task in tasks if task not in manager.task_index]
            if not unknown:
                return manager
    raise RequestError("\n".join(f"lm-eval knows no task {t}{did_you_mean(t, manager.all_tasks, 3)}" for t in unknown))


@cache
def _manager(folders: tuple[Path, ...], shipped: bool) -> Any:
    """The index of our tasks and those of `folders`. lm-eval's own are thousands of files: read once a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=[own_folder(), *folders], include_defaults=shipped)


@contextmanager
def _library() -> Iterator[None]:
    """lm-eval, quiet; MissingExtraError where it is not installed or does not import."""
    from datasets import config

    logger = logging.getLogger(_LIBRARY)
    level, counting = logger.level, config.HF_UPDATE_DOWNLOAD_COUNTS
    try:
        with contained(_LIBRARY):
            _import()
            logger.setLevel(logging.ERROR)
            # `datasets` reports every local file that it reads.
            config.HF_UPDATE_DOWNLOAD_COUNTS = False
            yield
    finally:
        logger.setLevel(level)
        config.HF_UPDATE_DOWNLOAD_COUNTS = counting


def _import() -> None:
    if find_spec(_LIBRARY) is None:
        raise MissingExtraError(f"tasks need lm-eval: {_ADVICE}")
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(f"lm-eval is installed but does not import: {error}; {_ADVICE}") from error


def _opened(manager: Any, tasks: Sequence[str]) -> Any:
    """lm-eval's tasks with their data."""
    built = [_data_of(manager, name) for name in dict.fromkeys(tasks)]
    opened = {
        part: {k: v for each in built for k, v in each[part].items()} for part in ("tasks", "groups", "group_map")
    }
    for name, task in opened["tasks"].items():
        _refuse(name, task)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=_SEED)
    return opened


def _data_of(manager: Any, name: str) -> Any:
    try:
        return manager.load([name])
    except MoteError as error:
        raise DataError(f"task {name}: {error.message}") from error
    except Exception as error:  # whatever `datasets` or a task's own code raises
        reason = first_line(error)
        raise DataError(
            f"task {name} cannot be opened: {reason}; its data must be on this machine (in the cache of `datasets`), "
            "or the machine online"
        ) from error


def _refuse(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise RequestError(f"task {name} runs code that the model writes; that is not done here")
    if getattr(task, "MULTIMODAL", False):
        raise RequestError(f"task {name} asks about images or sound; only tasks of text are run here")


def _flat(found: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """lm-eval's results without names, spreads and settings; the filter is named where a task has one of its own."""
    for task, metrics in found["results"].items():
        for key, value in metrics.items():
            metric, comma, chosen = key.partition(",")
            if comma and isinstance(value, Real) and not metric.endswith("_stderr"):
                yield f"{task}.{metric}" + ("" if chosen == "none" else f".{chosen}"), float(value)
        if task in found["n-samples"]:
            yield f"{task}.samples", float(found["n-samples"][task]["effective"])
