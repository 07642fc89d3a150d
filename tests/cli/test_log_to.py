"""`mote-quant apply --log-to`: where the figures of a training go."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("pico_data")


def test_figures_go_where_the_command_says(mote, model, recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = mote("apply", recipe, "-m", model, "-o", out, "--log-to", "tensorboard", "-q", "--no-times")
    assert result.exit_code == 0, result.stderr
    assert len((out / "run" / "metrics.jsonl").read_text().splitlines()) == 4
    assert list((out / "run" / "tensorboard" / "2-train").iterdir())
    assert not (out / "run" / "wandb").exists()


def test_a_place_nobody_knows_is_refused_before_the_run(mote, model, recipe, tmp_path: Path) -> None:
    more = ("-o", tmp_path / "out", "--log-to", "tensorboard, wandbb", "--no-times")
    for dry in ([], ["--dry-run"]):
        result = mote("apply", recipe, "-m", model, *more, *dry)
        assert result.exit_code != 0
        assert "figures cannot be logged to wandbb; did you mean wandb?" in result.stderr
        assert not result.stdout, "told before the plan, which would push it off the screen"
    assert not (tmp_path / "out").exists()


def test_a_run_that_trains_nothing_says_that_there_are_no_figures(mote, model, tmp_path: Path) -> None:
    (tmp_path / "q.yaml").write_text("name: q\nbits: {ffn: int8}\npipeline: [quantize]\n")
    told = ("--log-to", "tensorboard", "--sharding", "fsdp2", "--no-times")
    result = mote("apply", tmp_path / "q.yaml", "-m", model, "-o", tmp_path / "out", *told)
    assert result.exit_code == 0, result.stderr
    assert "nothing in this recipe trains: no use is made of log_to and sharding" in " ".join(result.stderr.split())
    assert "start several" not in result.stderr


def test_a_live_run_shows_how_fast_tokens_go_by(finished) -> None:
    assert "tokens/s" in finished[0].stderr
