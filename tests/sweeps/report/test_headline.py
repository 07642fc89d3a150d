"""The sentences people will quote: each verdict, each unit, each edge."""

from __future__ import annotations

import pytest

from mote_quant.sweeps.report.headline import Headline, caveats, headlines
from tests.sweeps.results import KIB, document, one_seed

SIZES = {f"{accounting}_bytes": 8 * KIB for accounting in ("paper", "stored", "resident")}


def duel(ours, theirs, **sweep):
    """Two contenders of 8 KiB: seed -> score."""
    points = [
        {
            "contender": name,
            "family": name,
            "group": group,
            "seed": seed,
            sweep.get("score", "accuracy"): value,
            **SIZES,
        }
        for name, group, values in (("mote-int4", "MoTE", ours), ("moe-int3", "full-precision MoE", theirs))
        for seed, value in values.items()
    ]
    budgets = [{"text": "3.4GB", "bytes": 8 * KIB}]
    settings = {"score": "accuracy", "higher_is_better": True, "match": "stored", "budgets": budgets, **sweep}
    return {"sweep": settings, "points": points}


def only(document_, **arguments):
    (line,) = headlines(document_, **arguments)
    return line


def test_ahead():
    line = only(duel({0: 0.51, 1: 0.514, 2: 0.517}, {0: 0.50, 1: 0.50, 2: 0.50}))
    assert line == Headline(
        "ahead",
        "at 3.4GB (stored)",
        "MoTE (mote-int4) beats the best full-precision MoE that fits (moe-int3) by 1.4 ± 0.4 points"
        " (95 % interval 1.0 to 1.7, 3 seeds)",
    )


def test_behind_is_told_from_the_winners_side():
    line = only(duel({0: 0.50, 1: 0.50, 2: 0.50}, {0: 0.51, 1: 0.514, 2: 0.517}))
    assert line.verdict == "behind"
    assert line.text.endswith(
        "MoTE (mote-int4) is behind the best full-precision MoE that fits (moe-int3) by 1.4 ± 0.4 points"
        " (95 % interval 1.0 to 1.7, 3 seeds)"
    )


def test_an_interval_with_zero_in_it_decides_nothing():
    line = only(duel({0: 0.51, 1: 0.49}, {0: 0.50, 1: 0.50}))
    assert line.verdict == "even"
    assert "cannot be told apart: 0.0 ± 1.4 points (95 % interval -1.0 to 1.0, which includes 0, 2 seeds)" in line.text


def test_equal_to_the_last_digit_is_even():
    assert only(duel({0: 0.5, 1: 0.6}, {0: 0.5, 1: 0.6})).verdict == "even"


def test_one_seed_gives_a_number_and_no_verdict():
    line = only(duel({0: 0.51}, {0: 0.50}))
    assert (line.verdict, line.text.split(": ")[1]) == ("unsure", "+1.0 points (1 seed, so no interval)")


def test_losses_are_in_nats_and_less_is_ahead():
    line = only(duel({0: 1.00, 1: 1.02}, {0: 1.10, 1: 1.11}, score="loss", higher_is_better=False))
    assert line.verdict == "ahead"
    assert "by 0.095 ± 0.007 nats (95 % interval 0.090 to 0.100, 2 seeds)" in line.text


def test_a_difference_too_small_for_the_usual_digits_is_not_shown_as_nothing():
    line = only(duel({0: 0.50004, 1: 0.50004}, {0: 0.50, 1: 0.50}))
    assert "by 0.004 ± 0.000 points" in line.text


def test_a_task_of_lm_eval_is_told_in_points():
    line = only(duel({0: 0.6, 1: 0.62}, {0: 0.5, 1: 0.5}, score="piqa.acc,none"))
    assert "11.0 ± 1.4 points" in line.text


@pytest.mark.parametrize(("limit", "expected"), [(4 * KIB, "at 1GB (stored), no MoTE fits")])
def test_a_budget_too_small_for_us_is_said_once(limit, expected):
    line = only(document(budgets=[{"text": "1GB", "bytes": limit}]))
    assert (line.verdict, line.text) == ("none", expected)


def test_a_budget_too_small_for_them():
    lines = headlines(document(budgets=[{"text": "36K", "bytes": 36 * KIB}]))
    assert [line.text for line in lines if "full-precision" in line.text] == [
        "at 36K (stored), no full-precision MoE fits; MoTE (mote-int3) has accuracy 82.3 %"
    ]


def test_no_common_seed():
    assert "share no seed" in only(duel({0: 0.5}, {1: 0.5})).text


def test_without_budgets_the_others_may_weigh_what_ours_weighs():
    lines = headlines(document(budgets=[]))
    assert [line.verdict for line in lines] == ["ahead", "ahead", "ahead"]
    # The int8 MoTE is as good as the bf16 one and smaller; the int4 MoE weighs more than it.
    assert lines[1].text.startswith(
        "at 50.0 KiB (stored), MoTE (mote-int8) beats the best full-precision MoE of no more bytes (moe-int3) by 4.7"
    )


def test_ours_may_be_another_group():
    lines = headlines(document(), ours="few int4 experts")
    assert len(lines) == 4
    assert "few int4 experts (few-int4) is behind the best MoTE that fits (mote-int4)" in lines[2].text
    assert headlines(document(), ours="nobody") == []
    assert headlines(document(ours="few int4 experts")) == lines


def test_few_seeds_are_owned_up_to():
    assert "With 3 seeds" in caveats(document())[0]
    assert "no interval" in caveats(one_seed())[0]
    assert caveats(document() | {"points": [], "failures": []}) == []


def test_failures_are_owned_up_to():
    assert caveats(document())[-1] == "1 failure is listed below."
    assert caveats(document() | {"points": [], "failures": [{}, {}]}) == ["2 failures are listed below."]
