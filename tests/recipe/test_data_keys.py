"""What a train step can be told about its data."""

from __future__ import annotations

from typing import Any

import pytest

from mote_quant.errors import RecipeError
from mote_quant.recipe import dump, load


def made(**settings: Any) -> Any:
    train = {"what": ["attention"], "data": "stdlib-text", "steps": 1} | settings
    return load({"name": "a", "pipeline": [{"train": train}]})


def test_sources_and_weights() -> None:
    assert made().pipeline[0].config.sources == {"stdlib-text": 1.0}
    mixed = made(data={"a.jsonl": 2, "b.jsonl": 0.5})
    assert mixed.pipeline[0].config.sources == {"a.jsonl": 2.0, "b.jsonl": 0.5}
    assert load(mixed) == mixed


def test_a_mix_survives_being_written_down(tmp_path) -> None:
    mixed = made(data={"a.jsonl": 2, "b.jsonl": 0.5}, stream=True, shuffle_buffer=7)
    path = tmp_path / "a.yaml"
    path.write_text(dump(mixed))
    assert load(path).pipeline[0].config == mixed.pipeline[0].config


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"data": {}}, "data: is empty; give at least one entry"),
        ({"data": {"a": 0}}, r"data\.a: must be more than 0, not 0"),
        ({"data": {"a": 1, "b": -2}}, r"data\.b: must be more than 0, not -2"),
        ({"data": {"a": "much"}}, r"data\.a: expected a number, not text \"much\""),
        ({"data": {"a": float("inf")}}, r"data\.a: expected a finite number"),
        ({"data": {"": 1}}, "must not be empty"),
        ({"data": ""}, "data: must not be empty"),
        ({"data": 3}, "data: expected text, not the number 3"),
        ({"pack": True}, "pack: needs max_length"),
        ({"pack": True, "bucket": True, "max_length": 8}, "bucket: packed rows are all of one length"),
        ({"shuffle_buffer": 3}, "shuffle_buffer: has a meaning only with stream: true"),
        ({"bad_rows": 3}, "bad_rows: has a meaning only with stream: true"),
        ({"stream": True, "shuffle_buffer": 0}, "shuffle_buffer: must be at least 1, not 0"),
        ({"stream": True, "search": {"learning_rates": [1.0, 2.0]}}, "search: looks at rows that are held out"),
        ({"strem": True}, "unknown key; did you mean stream"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        made(**settings)
    assert len(caught.value.problems) == 1
