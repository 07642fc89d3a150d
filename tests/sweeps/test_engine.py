"""The engine by itself: order, failures, cache, slots; workers that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mote_quant.errors import ArtifactError, CellDiedError
from mote_quant.progress import Silent
from mote_quant.sweeps.cells import Job, key_of, make_job, store_result, stored_result
from mote_quant.sweeps.engine import Done, Failure, Node, run_graph
from mote_quant.sweeps.workers import LocalWorkers


class Threads:
    """Runs `settings["do"]` of a job in a thread; `most` is how many ran at once."""

    def __init__(self, slots: int, actions: dict[str, Any]) -> None:
        self.slots, self.most, self.now, self.ran = slots, 0, 0, list[str]()
        self._actions, self._pool = actions, ThreadPoolExecutor(8)

    def submit(self, job: Job) -> Future[Any]:
        return self._pool.submit(self._run, job)

    def _run(self, job: Job) -> Any:
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.01)
        try:
            self.ran.append(job.settings["name"])
            return self._actions.get(job.settings["name"], dict)()
        finally:
            self.now -= 1

    def close(self) -> None:
        self._pool.shutdown()


def _node(root: Path, name: str, *needs: str, tolerant: bool = False) -> Node:
    return Node(name, needs, lambda _: make_job(root, "test", {"name": name}, {}, {}), tolerant)


def _fail() -> Any:
    raise ValueError("bad luck\nand more")


def test_needs_come_first_and_slots_are_kept(tmp_path: Path) -> None:
    nodes = [_node(tmp_path, "a"), *(_node(tmp_path, f"b{i}", "a") for i in range(5)), _node(tmp_path, "c", "b0", "b4")]
    workers = Threads(2, {})
    outcomes = run_graph(nodes, workers, Silent())
    assert workers.ran[0] == "a"
    assert workers.ran.index("c") > max(workers.ran.index("b0"), workers.ran.index("b4"))
    assert workers.most == 2
    assert all(isinstance(outcome, Done) and outcome.fresh for outcome in outcomes.values())


def test_a_failure_stops_only_what_needs_it(tmp_path: Path) -> None:
    nodes = [_node(tmp_path, "a"), _node(tmp_path, "b", "a"), _node(tmp_path, "c", "b"), _node(tmp_path, "d")]
    outcomes = run_graph(nodes, Threads(2, {"a": _fail}), Silent())
    assert outcomes["a"] == Failure("ValueError: bad luck")
    assert outcomes["b"] == outcomes["c"] == Failure("ValueError: bad luck", cause="a")
    assert isinstance(outcomes["d"], Done)


def test_a_tolerant_node_sees_failures(tmp_path: Path) -> None:
    nodes = [_node(tmp_path, "a"), _node(tmp_path, "b", "a", tolerant=True)]
    assert isinstance(run_graph(nodes, Threads(1, {"a": _fail}), Silent())["b"], Done)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    run_graph([_node(tmp_path, "a")], Threads(1, {"a": lambda: {"x": 1}}), Silent())
    again = Threads(1, {"a": _fail})
    outcome = run_graph([_node(tmp_path, "a")], again, Silent())["a"]
    assert again.ran == []
    assert isinstance(outcome, Done)
    assert outcome.result == {"x": 1}
    assert not outcome.fresh


def test_equal_cells_run_once(tmp_path: Path) -> None:
    twice = [Node(name, (), lambda _: make_job(tmp_path, "test", {"name": "same"}, {}, {})) for name in ("a", "b")]
    workers = Threads(2, {})
    outcomes = run_graph(twice, workers, Silent())
    assert workers.ran == ["same"]
    assert set(outcomes) == {"a", "b"}


@pytest.mark.parametrize("text", ["", "{", '{"result": {}}', '{"result": {"x": 2}, "sha256": "0"}', "[]"])
def test_a_damaged_result_is_an_error(tmp_path: Path, text: str) -> None:
    job = make_job(tmp_path, "test", {"name": "a"}, {}, {})
    store_result(job, {"x": 1})
    (job.folder / "result.json").write_text(text)
    with pytest.raises(ArtifactError, match="delete"):
        stored_result(job)


def test_keys_depend_on_everything_but_places() -> None:
    key = key_of("train", {"a": 1}, {"data": "x"})
    assert key == key_of("train", {"a": 1}, {"data": "x"})
    others = [key_of("measure", {"a": 1}, {"data": "x"}), key_of("train", {"a": 2}, {"data": "x"})]
    assert key not in [*others, key_of("train", {"a": 1}, {"data": "y"})]
    first = make_job(Path("r"), "train", {"a": 1}, {"base": "here"}, {})
    assert first.folder == make_job(Path("r"), "train", {"a": 1}, {"base": "there"}, {}).folder


def test_the_order_of_rules_counts() -> None:
    one, other = {"bits": {"a": "int4", "*": "int8"}}, {"bits": {"*": "int8", "a": "int4"}}
    assert key_of("train", one, {}) != key_of("train", other, {})


def test_a_worker_that_is_killed_costs_its_own_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.setattr("mote_quant.sweeps.workers.run_job", deadly)
    workers = LocalWorkers(1)
    try:
        with pytest.raises(CellDiedError, match="memory"):
            workers.submit(Job("die", tmp_path, {})).result(timeout=120)
        assert workers.submit(Job("live", tmp_path, {})).result(timeout=120) == {"alive": True}
    finally:
        workers.close()


def deadly(job: Job) -> dict[str, bool]:
    """A job that kills its own process, as the kernel does for want of memory."""
    if job.kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return {"alive": True}


def sleepy(job: Job) -> dict[str, bool]:
    """A job that never ends; it writes its process id first."""
    (job.folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)
    return {}


_PARENT = """
import sys
from pathlib import Path
from mote_quant.sweeps import workers
from mote_quant.sweeps.cells import Job
from tests.sweeps.test_engine import sleepy
if __name__ == "__main__":
    workers.run_job = sleepy
    workers.LocalWorkers(1).submit(Job("sleep", Path(sys.argv[1]), {})).result()
"""


def test_workers_do_not_outlive_a_killed_sweep(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env={**os.environ, "PYTHONPATH": root})
    pid = tmp_path / "pid"
    _until(lambda: pid.exists() and pid.read_text() != "")
    parent.kill()
    parent.wait()
    _until(lambda: not Path(f"/proc/{pid.read_text()}").exists() or _is_zombie(int(pid.read_text())))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def _until(condition: Any, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen"
        time.sleep(0.1)
