"""Progress on a fake console under a fake clock."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from mote_quant.cli.display import Display, Lines, Live
from mote_quant.progress import Bytes


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def screen(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=140)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def advance(display: Display, clock: Clock, steps: int, each: float, first: int = 1) -> None:
    for step in range(first, first + steps):
        clock.now += each
        display.advance(step)


def test_a_log_file_gets_ten_lines_a_stretch_with_pace_and_time_left() -> None:
    console, clock = screen(terminal=False), Clock()
    display = Lines(console, clock)
    display.start("training", 1000)
    for step in range(1, 1001):
        clock.now += 0.5
        display.advance(step, loss=1.5)
    lines = written(console).splitlines()
    assert len(lines) == 11
    assert lines[0] == "training, 1000 steps"
    assert lines[1] == "training 100/1000 loss 1.5 (2.0/s, 8 min left)"
    assert lines[-1] == "training 1000/1000 loss 1.5 (2.0/s)"


def test_nothing_is_said_of_a_pace_that_has_not_settled() -> None:
    console, clock = screen(terminal=False), Clock()
    display = Lines(console, clock)
    display.start("quantizing", 10)
    advance(display, clock, steps=1, each=0.1)
    assert written(console).splitlines()[-1] == "quantizing 1/10"


def test_a_long_stretch_says_more_often_that_it_is_alive() -> None:
    console, clock = screen(terminal=False), Clock()
    display = Lines(console, clock)
    display.start("training", 1000)
    advance(display, clock, steps=20, each=60.0)
    lines = written(console).splitlines()
    assert len(lines) == 5
    assert lines[-1] == "training 20/1000 (1 min each, 16 h left)"


def test_a_resumed_stretch_is_as_fast_as_what_it_did_itself() -> None:
    console, clock = screen(terminal=False), Clock()
    display = Lines(console, clock)
    display.start("training", 1000)
    advance(display, clock, steps=100, each=10.0, first=901)
    assert written(console).splitlines()[1] == "training 901/1000 (10 s each, 16 min left)"


def test_bytes_are_shown_as_such() -> None:
    console, clock = screen(terminal=False), Clock()
    display = Lines(console, clock)
    display.start("loading", Bytes(4 * 2**30))
    clock.now += 4.0
    display.advance(2**30)
    assert written(console).splitlines() == [
        "loading, 4.00 GiB",
        "loading 1.00 GiB/4.00 GiB (256 MiB/s, 12 s left)",
    ]


def test_a_terminal_shows_bar_steps_loss_pace_and_time_left_and_drops_what_had_no_end() -> None:
    console, clock = screen(terminal=True), Clock()
    display = Live(console, clock)
    display.start("loading", 0)
    display.start("training", 8)
    advance(display, clock, steps=2, each=10.0)
    clock.now += 10.0
    display.advance(3, loss=2.25)
    display._bars.refresh()
    shown = written(console)
    for part in ("training", "3/8", "loss 2.25", "10 s each", "50 s left"):
        assert part in shown
    display.close()
    last = written(console).rpartition("\r")[2]  # the frame that stays
    assert "3/8" in last
    assert "left" not in last
    assert "loading" not in last


def test_a_long_path_leaves_room_for_the_bar() -> None:
    console = screen(terminal=True)
    display = Live(console, Clock())
    display.start(f"loading /{'x' * 200}/model", 4)
    display.advance(1)
    display.close()
    (line,) = (line for line in written(console).rpartition("\r")[2].splitlines() if "loading" in line)
    assert "/model" in line
    assert "1/4" in line


@pytest.mark.parametrize("terminal", [True, False])
def test_closing_twice_or_before_the_start_is_harmless(terminal: bool) -> None:
    display = Live(screen(terminal)) if terminal else Lines(screen(terminal))
    display.advance(1)
    display.close()
    display.close()
