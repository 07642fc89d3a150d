"""Training on streams, mixes, packed and sorted samples: killed after a checkpoint and resumed, to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from mote_quant import apply
from mote_quant.data import arranging
from mote_quant.errors import DataError, FingerprintError, RecipeError
from mote_quant.pipeline import Options
from tests import pico, processors
from tests.data.rows import jsonl, pairs, texts
from tests.mixtures import bits_of, same
from tests.stopping import Stop, StopError

UPCYCLE: dict[str, Any] = {"upcycle": {"noise": 0.3, "router_std": 0.3}}
TRAIN: dict[str, Any] = {"what": ["routed", "router"], "steps": 9, "batch_size": 2, "checkpoint_every": 4}
LENGTH = {"max_length": 32}


def recipe(data: Any, **settings: Any) -> dict[str, Any]:
    train = TRAIN | LENGTH | {"data": data} | settings
    return {"name": "fed", "pipeline": [UPCYCLE, {"train": train}]}


def train(
    data: Any, folder: Path | None = None, stop: int | None = None, family: str = "llama", **settings: Any
) -> Any:
    """The trained weights and the notes of the run in `folder`."""
    model = pico.PICO[family]()
    options = Options(Stop("training", stop or 0))
    apply(recipe(data, **settings), model, processor=processors.tokenizer(), output=folder, options=options)
    return bits_of(model.state_dict())


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("rows")
    found = {
        "texts": jsonl(folder / "texts.jsonl", texts(40, 20)),
        "pairs": jsonl(folder / "pairs.jsonl", pairs(30)),
        "others": jsonl(folder / "others.jsonl", pairs(17, seed=1)),
    }
    datasets.Dataset.from_list(pairs(30)).to_parquet(folder / "pairs.parquet")
    return found | {"parquet": str(folder / "pairs.parquet")}


STREAM = {"stream": True, "shuffle_buffer": 5}
WAYS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "a stream of blocks": (["texts"], STREAM),
    "a stream of parquet": (["parquet"], STREAM),
    "a stream with rows held out, accumulated": (
        ["pairs"],
        STREAM | {"validation_rows": 4, "gradient_accumulation": 3},
    ),
    "a mix": (["pairs", "others"], {}),
    "a mix of streams, packed": (["pairs", "others"], STREAM | {"pack": True}),
    "packed": (["texts"], {"pack": True}),
    "sorted": (["pairs"], {"bucket": True}),
}


SELDOM = ("a stream of parquet", "a mix", "packed")


@pytest.mark.parametrize("way", [pytest.param(way, marks=[pytest.mark.slow] * (way in SELDOM)) for way in WAYS])
def test_a_run_killed_after_a_checkpoint_ends_in_the_same_bits(files, tmp_path, monkeypatch, way):
    # Windows that begin and end between checkpoints.
    monkeypatch.setattr(arranging, "PACKED_AT_ONCE", 7)
    monkeypatch.setattr(arranging, "BATCHES_AT_ONCE", 3)
    names, settings = WAYS[way]
    data: Any = files[names[0]] if len(names) == 1 else {files[name]: n for n, name in enumerate(names, 1)}
    whole = train(data, tmp_path / "whole", **settings)
    with pytest.raises(StopError):
        train(data, tmp_path / "killed", 7, **settings)
    resumed = train(data, tmp_path / "killed", **settings)
    assert same(whole, resumed)
    first, second = (json.loads((tmp_path / run / "run/report.json").read_text()) for run in ("whole", "killed"))
    assert first["steps"][1].get("data") == second["steps"][1].get("data")
    assert first["steps"][1]["tokens"] == second["steps"][1]["tokens"]


@pytest.fixture(scope="module")
def reports(files, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What the reports of short runs say of their data."""
    folder, found = tmp_path_factory.mktemp("reports"), {}
    for way, settings in {"pack": {"pack": True}, "bucket": {"bucket": True}, "plain": {}}.items():
        train(files["pairs"], folder / way, steps=2, batch_size=3, **settings)
        found[way] = json.loads((folder / way / "run/report.json").read_text())["steps"][1]
    return found


def test_the_report_says_how_full_rows_are(reports):
    assert reports["pack"]["data"]["packed"]["fill"] > 0.85
    assert reports["pack"]["data"]["packed"]["samples_a_row"] > 1.5
    sorted_, unsorted = (reports["bucket"]["data"]["bucketed"][key] for key in ("padding", "padding_unsorted"))
    assert sorted_ < unsorted
    assert "data" not in reports["plain"]


def test_a_bad_row_in_the_middle_loses_nothing(files, tmp_path):
    lines = Path(files["pairs"]).read_text().splitlines()
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([*lines[:14], '{"prompt": "half a r', *lines[14:]]))
    settings = STREAM | {"shuffle_buffer": 1}
    with pytest.raises(DataError, match=r"a\.jsonl, row 15: it is no JSON.*to go on from there .* say bad_rows: 1"):
        train(str(path), tmp_path / "run", **settings)
    steps = [p.name for p in (tmp_path / "run/run").rglob("checkpoint-*")]
    assert steps == ["checkpoint-4"]
    resumed = train(str(path), tmp_path / "run", bad_rows=1, **settings)
    report = json.loads((tmp_path / "run/run/report.json").read_text())
    assert report["steps"][1]["data"] == {"bad_rows": 1}
    assert same(resumed, train(str(path), bad_rows=5, **settings))


@pytest.mark.parametrize("change", ["rows", "buffer"])
def test_another_stream_is_another_run(files, tmp_path, change):
    path = tmp_path / "a.jsonl"
    path.write_text(Path(files["pairs"]).read_text())
    with pytest.raises(StopError):
        train(str(path), tmp_path / "run", 5, **STREAM)
    if change == "rows":
        jsonl(path, pairs(30, seed=7))
    with pytest.raises(FingerprintError, match="data"):
        train(str(path), tmp_path / "run", **(STREAM if change == "rows" else STREAM | {"shuffle_buffer": 4}))


def test_a_stream_is_validated_on_the_rows_held_out(files, tmp_path):
    validation = {"every": 3, "samples": 4, "patience": 5}
    with pytest.raises(RecipeError, match=r"validation.*: looks at rows that are held out: .* validation_rows"):
        train(files["pairs"], **STREAM, validation=validation)
    train(files["pairs"], tmp_path, **STREAM, validation=validation, validation_rows=6, steps=3)
    told = json.loads((tmp_path / "run/report.json").read_text())["steps"][1]["validation"]
    assert len(told["curve"]) == 1


def test_all_data_can_be_replaced_from_outside(files, tmp_path):
    mix = recipe({"nowhere.jsonl": 1, "neither.jsonl": 2}, steps=1)
    model = pico.PICO["llama"]()
    apply(mix, model, processor=processors.tokenizer(), data=files["pairs"], output=tmp_path)
    assert "data" not in json.loads((tmp_path / "run/report.json").read_text())["steps"][1]


def test_packing_is_refused_where_it_would_be_wrong(files):
    from eval.families.builders import LANGUAGE

    made = {"train": TRAIN | LENGTH | {"what": ["norm"], "data": files["pairs"], "pack": True}}
    with pytest.raises(DataError, match="would let packed samples see each other"):
        apply({"name": "packed", "pipeline": [made]}, LANGUAGE["Falcon-H1"](), processor=processors.tokenizer())


def test_rows_are_packed_in_bfloat16_too(files):
    weights = train(files["pairs"], pack=True, precision="bfloat16", steps=2)
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
