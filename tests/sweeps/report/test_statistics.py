"""Means, spreads and paired intervals, against arithmetic done another way."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.sweeps.report.statistics import Contender, contenders, paired, spread
from tests.sweeps.results import document

scores = st.floats(-10, 10, allow_nan=False)


def contender(name, values, key="loss"):
    sizes = {f"{accounting}_bytes": 8 for accounting in ("paper", "stored", "resident")}
    return Contender(name, name, name, tuple({"seed": seed, key: value, **sizes} for seed, value in values.items()))


@given(st.lists(scores, min_size=2, max_size=9))
def test_spread_is_what_the_textbook_says(values):
    found = spread(values)
    mean = sum(values) / len(values)
    assert found.n == len(values)
    assert found.mean == pytest.approx(mean, abs=1e-12)
    assert found.sd == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1)), abs=1e-9)


def test_one_value_has_no_spread():
    assert spread([2.5]).sd is None


def test_a_contender_keeps_only_the_seeds_that_have_a_finite_number():
    one = contender("one", {0: 1.0, 1: float("nan"), 2: None, 3: True, 4: 3.0})
    assert one.values("loss") == {0: 1.0, 4: 3.0}
    assert one.metrics["loss"].n == 2


def test_bytes_seed_and_rate_are_no_metrics_and_absent_numbers_are_left_out():
    found = {one.name: one for one in contenders(document())}["moe-bf16"]
    assert found.metrics.keys() & {"seed", "learning_rate", "stored_bytes", "load_min", "unquantized_loss"} == set()
    assert found.metrics["loss"].n == 3
    assert found.size("stored") == 192 * 1024


def test_contenders_keep_the_order_of_the_document():
    assert [one.name for one in contenders(document())][:3] == ["dense-bf16", "dense-int4", "moe-bf16"]


def test_only_common_seeds_are_paired():
    found = paired(contender("a", {0: 1.0, 1: 5.0, 2: 9.0}), contender("b", {1: 4.0, 2: 7.0, 3: 0.0}), "loss")
    assert found.seeds == (1, 2)
    assert found.mean == pytest.approx(1.5)


def test_no_common_seed_is_no_difference_and_one_is_no_interval():
    assert paired(contender("a", {0: 1.0}), contender("b", {1: 4.0}), "loss") is None
    alone = paired(contender("a", {0: 1.0}), contender("b", {0: 4.0}), "loss")
    assert (alone.mean, alone.sd, alone.low, alone.high, alone.decided) == (-3.0, None, None, None, False)


def test_where_lower_is_better_less_counts_as_ahead():
    ours, theirs = contender("a", {0: 1.0, 1: 1.5}), contender("b", {0: 2.0, 1: 2.6})
    found = paired(ours, theirs, "loss", higher_is_better=False)
    assert found.mean == pytest.approx(1.05)
    assert found.decided
    assert not paired(ours, ours, "loss").decided


def test_pairing_takes_out_what_a_seed_does_to_both():
    ours, theirs = contender("a", {0: 1.1, 1: 5.1, 2: 9.1}), contender("b", {0: 1.0, 1: 5.0, 2: 9.0})
    assert paired(ours, theirs, "loss").sd == pytest.approx(0.0, abs=1e-12)


@given(st.lists(scores, min_size=2, max_size=4))
def test_the_interval_is_that_of_every_possible_resample(values):
    """With few seeds all n**n resamples can be listed: the drawn percentiles lie among the exact ones."""
    found = paired(contender("a", dict(enumerate(values))), contender("b", dict.fromkeys(range(9), 0.0)), "loss")
    means = sorted(sum(draw) / len(draw) for draw in itertools.product(values, repeat=len(values)))
    # A drawn quantile may be a neighbour of the exact one: allow what 10,000 draws may be off by.
    assert _quantile(means, 0.017) - 1e-9 <= found.low <= _quantile(means, 0.033) + 1e-9
    assert _quantile(means, 0.967) - 1e-9 <= found.high <= _quantile(means, 0.983) + 1e-9


def _quantile(ordered, share):
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def test_the_interval_is_the_same_every_time():
    ours, theirs = contenders(document())[-1], contenders(document())[0]
    assert paired(ours, theirs, "accuracy") == paired(ours, theirs, "accuracy")
