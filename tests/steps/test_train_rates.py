"""Learning rates of their own: who takes which, that nothing else changes, near misses."""

from __future__ import annotations

import pytest

from mote_quant.errors import RecipeError, TargetError
from mote_quant.fingerprint import differences, fingerprint_of
from mote_quant.recipe import load
from mote_quant.steps.train.rates import parameter_groups
from mote_quant.steps.train.selection import trainable_names
from tests import pico
from tests.mixtures import TERNARY, bits_of, recipe, train_it, upcycled
from tests.sources import source_for

WHAT = ["routed", "router", "shared", "norm"]


def groups_of(rates: dict[str, float], **settings) -> dict[str, tuple[float | None, float]]:
    """Name -> (rate, weight decay) as the optimizer is told."""
    model = pico.PICO["llama"]()
    upcycled(model, TERNARY)
    config = recipe(train={"what": WHAT, "learning_rates": rates, **settings}).pipeline[1].config
    chosen = trainable_names(model, config.what)
    decayed = {name for name in chosen if "norm" not in name}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, chosen, config, decayed)
    found = {names[id(p)]: (group.get("lr"), group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found) == len(chosen)
    return found


def test_the_first_match_wins_and_the_others_take_learning_rate():
    found = groups_of({"router": 3e-4, "*.layers.0.*": 1e-5, "norm": 2e-3}, weight_decay=0.1)
    for name, (rate, decay) in found.items():
        expected = 3e-4 if ".gate." in name else 1e-5 if ".layers.0." in name else 2e-3 if "norm" in name else None
        assert rate == expected, name
        assert decay == (0.0 if "norm" in name else 0.1), name
    assert {rate for rate, _ in found.values()} == {3e-4, 1e-5, 2e-3, None}


def test_without_any_the_groups_are_as_ever():
    assert {rate for rate, _ in groups_of({}).values()} == {None}


def first_step(**settings) -> dict[str, float]:
    """How far Adam moved each role in one step: it moves everything by its rate."""
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY)
    before = bits_of(model.state_dict())
    train_it(model, context, what=WHAT[:3], steps=1, warmup=0.0, schedule="constant", **settings)
    after = {name: tensor for name, tensor in model.state_dict().items() if tensor.numel()}
    moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in after.items()}
    part = {"router": ".gate.", "routed": ".experts.", "shared": ".shared_expert."}
    roles = {role: max(moved[name] for name in moved if key in name) for role, key in part.items()}
    return roles | {"told": context.notes.get("learning_rates")}


def test_each_moves_at_its_rate():
    moved = first_step(learning_rate=1e-3, learning_rates={"router": 3e-4, "shared": 1e-5})
    for role, rate in {"routed": 1e-3, "router": 3e-4, "shared": 1e-5}.items():
        assert moved[role] == pytest.approx(rate, rel=1e-2), role
    assert moved["told"]["router"] == {"rate": 3e-4, "values": 2 * 4 * 32}
    assert set(moved["told"]) == {"router", "shared"}


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        (
            {"routr": 1e-3},
            r"train\.learning_rates, of what is trained: target routr matches no parameter; did you mean",
        ),
        ({"attention": 1e-3}, "target attention matches nothing: .* here are norm, routed, router, shared"),
        ({"routed": 1e-3, "*experts.1*": 1e-4}, "never applies: all it matches is taken by routed"),
    ],
)
def test_a_target_that_means_nothing_that_trains(rates, message):
    with pytest.raises(TargetError, match=message):
        groups_of(rates)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rates": {"router": 0}}, "must be more than 0"),
        ({"learning_rate": {"router": 1e-3}}, "expected a number"),
        ({"guard": {"facter": 2.0}}, "did you mean factor"),
        ({"guard": {"factor": 1.0}}, "must be more than 1"),
        ({"guard": {"cooling": 0.0}}, "must be more than 0"),
        ({"validation": {"evry": 2}}, "did you mean every"),
        ({"search": {"learning_rates": [1e-3]}}, "a search needs at least two"),
        ({"search": {"learning_rates": [1e-3, 1e-3]}}, "is named twice"),
        ({"search": {}}, "missing key"),
        ({"distill": {"teacher": "x", "top_k": 4}}, "has a meaning only with cache"),
        ({"distill": {"teacher": "x", "hiden": 1.0}}, "did you mean hidden"),
    ],
)
def test_slips_in_a_recipe(settings, message):
    train = {"what": ["attention"], "data": "pico", "steps": 2}
    with pytest.raises(RecipeError, match=message):
        load({"name": "slip", "pipeline": [{"train": train | settings}]})


def test_the_order_of_rates_is_part_of_what_a_run_is():
    model = pico.PICO["llama"]()
    rates = {"*.layers.0.*": 1e-3, "attention": 1e-4}
    prints = []
    for given in (rates, dict(reversed(rates.items()))):
        made = load(
            {
                "name": "r",
                "pipeline": [{"train": {"what": ["attention"], "data": "pico", "steps": 2, "learning_rates": given}}],
            }
        )
        prints.append(fingerprint_of(made, model, lambda name, length: source_for(model)))
    assert differences(*prints)
