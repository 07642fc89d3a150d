from __future__ import annotations

import json
from typing import Any

import pytest

from mote_quant.errors import RecipeError, RequestError
from mote_quant.memory.ledger import GIB
from mote_quant.planning import plan
from mote_quant.sweeps.candidates_table import CandidateTable, Row, weigh_candidates
from mote_quant.sweeps.load import load_sweep
from tests import pico


@pytest.fixture(scope="module")
def table() -> CandidateTable:
    return weigh_candidates("Qwen2.5-3B", ["3.41GB"], match="paper", context=8192, batch=2)


def row(table: CandidateTable, contender: str) -> Row:
    return next(row for row in table.rows if row.contender == contender)


@pytest.mark.parametrize(
    ("contender", "gib"),
    [
        ("moe-bf16", 18.14),
        ("mote-4e-bf16", 6.80),
        ("mote-4e-int8", 4.54),
        ("dense-bf16", 4.54),
        ("mote-4e-int4", 3.40),
        ("moe-int3", 3.40),
        ("few-3e-int4", 3.40),
        ("mote-4e-int3", 3.12),
        ("moe-half-bf16", 11.34),
    ],
)
def test_the_published_sizes(table: CandidateTable, contender: str, gib: float) -> None:
    assert round(row(table, contender).paper_bytes / GIB, 2) == gib


def test_who_fits_comes_first_and_the_largest_of_them_before_all(table: CandidateTable) -> None:
    budget = table.budgets[0]
    left = [table.left(row, budget) for row in table.rows]
    fitting = [size for size in left if size >= 0]
    assert left == [*sorted(fitting), *sorted((size for size in left if size < 0), reverse=True)]
    assert 0 < len(fitting) < len(left)
    best = {group: row.contender if row else None for group, row in table.best(budget).items()}
    assert best == {
        "dense": "dense-int8",
        "full-precision MoE": "moe-int3",
        "few int4 experts": "few-3e-int4",
        "MoTE": "mote-4e-int4",
    }


def test_the_cache_comes_on_top(table: CandidateTable) -> None:
    assert table.run is not None
    assert table.run.cache_bytes == 2 * 8192 * 36 * 1024
    for each in table.rows:
        assert table.run_bytes(each) == each.model_resident_bytes + table.run.cache_bytes


def test_as_json(table: CandidateTable) -> None:
    values = json.loads(json.dumps(table.to_dict()))
    assert set(values) == {"model", "match", "dense_bytes", "run", "budgets", "candidates", "impossible"}
    assert values["model"] == "Qwen2.5-3B"
    assert values["dense_bytes"] == 2 * 36 * 3 * 2048 * 11008
    (budget,) = values["budgets"]
    assert (budget["text"], budget["bytes"]) == ("3.41GB", int(3.41 * GIB))
    assert budget["best"]["MoTE"] == "mote-4e-int4"
    for line in values["candidates"]:
        assert line["fits"] == (["3.41GB"] if line["paper_bytes"] <= budget["bytes"] else [])
        assert line["run_bytes"] == line["model_resident_bytes"] + values["run"]["cache_bytes"]


INT4 = {"format": "int4", "group_size": 128}
FEW: dict[str, Any] = {
    "name": "few-lines",
    "base": {"model": "x"},
    "data": "y",
    "contenders": {
        "dense": {"group": "dense", "variants": {"bf16": {"ffn": "bfloat16"}, "int4": {"ffn": INT4}}},
        "moe": {"group": "MoE", "upcycle": {"top_k": 2, "shared": "none"}, "bits": {"routed": {"format": "int8"}}},
        "mote": {
            "group": "MoTE",
            "experts": [4],
            "upcycle": {},
            "qat": {"routed": "ternary"},
            "bits": {"shared": INT4},
        },
    },
}


def small(*budgets: str, source: Any = FEW, **options: Any) -> CandidateTable:
    return weigh_candidates(pico.PICO["qwen2"](hidden=128, ffn=256).config, budgets, source=source, **options)


def test_every_candidate_is_there_and_weighs_what_its_plan_says() -> None:
    # Room for the samples that the candidates' recipes calibrate on; a plan refuses them otherwise.
    config = pico.PICO["qwen2"](hidden=128, ffn=256, max_position_embeddings=4096).config
    made = load_sweep("candidates").candidates
    table = small("1x", source="candidates")
    assert {row.contender for row in table.rows} == {candidate.name for candidate in made}
    for candidate in made[::7]:
        planned, weighed = plan(candidate.recipe, config).result, row(table, candidate.name)
        assert weighed.model_stored_bytes == planned.stored_bytes
        assert weighed.model_resident_bytes == planned.resident_bytes
        assert weighed.paper_bytes == GIB * planned.paper_gib["experts"]


@pytest.mark.parametrize("match", ["stored", "paper", "resident"])
def test_budgets_count_what_they_are_asked_to(match: Any) -> None:
    exact = row(small("1x"), "mote-4e").matched(match)
    fits, misses = small(str(exact), match=match), small(str(exact - 1), match=match)
    assert fits.left(row(fits, "mote-4e"), fits.budgets[0]) == 0
    assert misses.left(row(misses, "mote-4e"), misses.budgets[0]) == -1


def test_relative_budgets() -> None:
    table = small("0.5x", "2x", match="paper")
    dense = 2 * 2 * 3 * 128 * 256
    assert [budget.bytes for budget in table.budgets] == [dense // 2, 2 * dense]
    assert table.left(row(table, "moe"), table.budgets[1]) == 0


def test_a_budget_that_nothing_fits_is_told() -> None:
    table = small("0.1x", "1x")
    assert [budget.text for budget in table.unmet()] == ["0.1x"]
    assert set(table.best(table.budgets[0]).values()) == {None}
    assert table.smallest().contender == "dense-int4"


def test_candidates_that_cannot_be_built_are_named() -> None:
    table = small("1x", overrides=["contenders.mote.upcycle.split=7"])
    assert table.impossible.keys() == {"mote-4e"}
    assert "7 does not divide" in table.impossible["mote-4e"]
    assert table.groups == ("dense", "MoE")


@pytest.mark.parametrize(
    ("budgets", "options", "words"),
    [
        (["tiny"], {}, "'tiny' is not a size"),
        (["0x"], {}, "at least one byte"),
        (["1x"], {"source": "candidate"}, "did you mean candidates"),
        (["1x"], {"overrides": ["contenders.moe.upcycle.expert=2"]}, "expert"),
    ],
)
def test_bad_requests(budgets: list[str], options: Any, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        small(*budgets, **options)


def test_a_list_of_which_nothing_can_be_built() -> None:
    with pytest.raises(RequestError, match=r"no candidate can be built on this model: .*does not divide"):
        small("1x", source=only_mote(split=7))
    with pytest.raises(RecipeError, match="top_k"):
        small("1x", source=only_mote(top_k=9))


def only_mote(**upcycle: Any) -> dict[str, Any]:
    mote = {"group": "MoTE", "upcycle": {"experts": 4, **upcycle}, "qat": {"routed": "ternary"}}
    return FEW | {"contenders": {"mote": mote}}
