"""The target grammar against a small made-up model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mote_quant.errors import TargetError
from mote_quant.recipe.schema import ROLES
from mote_quant.recipe.targets import Candidate, assign, matches, select


def candidate(name: str, module_class: str, role: str) -> Candidate:
    return Candidate(name, name.rpartition(".")[0], module_class, role)


LAYERS = [
    parameter
    for layer in range(2)
    for parameter in (
        candidate(f"model.layers.{layer}.self_attn.q_proj.weight", "Linear", "attention"),
        candidate(f"model.layers.{layer}.self_attn.q_proj.bias", "Linear", "attention"),
        candidate(f"model.layers.{layer}.mlp.gate.weight", "Router", "router"),
        candidate(f"model.layers.{layer}.mlp.shared_expert.up_proj.weight", "Linear", "shared"),
        candidate(f"model.layers.{layer}.mlp.experts.0.up_proj.weight", "QatLinear", "routed"),
        candidate(f"model.layers.{layer}.input_layernorm.weight", "RMSNorm", "norm"),
    )
]
MODEL = [
    candidate("model.embed_tokens.weight", "Embedding", "embedding"),
    *LAYERS,
    candidate("lm_head.weight", "Linear", "head"),
]


def names(target: str) -> list[str]:
    return [chosen.name for chosen in select(target, MODEL)]


@pytest.mark.parametrize(
    ("target", "count"),
    [
        ("routed", 2),
        ("attention", 4),
        ("head", 1),
        ("QatLinear", 2),
        ("Linear", 7),
        ("lm_head", 1),
        ("lm_head.weight", 1),
        ("model", 13),
        ("model.layers.0", 6),
        ("model.layers.0.mlp", 3),
        ("model.layers.0.mlp.gate.weight", 1),
        ("model.layers.*.mlp.gate", 2),
        ("*.bias", 2),
        ("*up_proj*", 4),
        ("model.*.experts.*", 2),
        ("re:.*lm_head", 1),
        ("re:lm_head$", 1),
        (r"re:layers\.1\.", 6),
        (r"re:\.weight$", 12),
        ("re:^model.*norm", 2),
    ],
)
def test_target_selects(target: str, count: int) -> None:
    assert len(names(target)) == count


def test_a_role_is_never_read_as_a_name() -> None:
    stray = candidate("head.weight", "Linear", "other")
    assert not matches("head", stray)
    assert matches("head.weight", stray)


def test_a_name_is_whole_but_a_module_covers_its_children() -> None:
    assert not matches("model.layers.1", candidate("model.layers.10.mlp.gate.weight", "Router", "router"))
    assert not matches("layers.0", LAYERS[0])
    assert matches("model.layers.0.self_attn", LAYERS[0])
    assert not matches("model.layers.0.self_attn.q_proj.weigh", LAYERS[0])


def test_dots_and_brackets_of_a_name_are_literal() -> None:
    assert not matches("lm.head", candidate("lm_head.weight", "Linear", "head"))
    assert matches("a[0]+.w", candidate("a[0]+.w", "Linear", "other"))


def test_selection_keeps_the_order_of_the_model() -> None:
    assert names("*") == [each.name for each in MODEL]


@pytest.mark.parametrize(
    ("target", "near"),
    [
        ("routd", "routed"),
        ("Routed", "routed"),
        ("QatLinaer", "QatLinear"),
        ("lm_heed", "lm_head"),
        ("embed_token", "embed_tokens"),
        ("model.layers.0.mlp.gat", "model.layers.0.mlp.gate"),
        ("*.sharedexpert.*", "shared_expert"),
        ("re:.*lm_heed$", "lm_head"),
    ],
)
def test_no_match_names_near_misses(target: str, near: str) -> None:
    with pytest.raises(TargetError) as caught:
        select(target, MODEL)
    message = str(caught.value)
    assert message.startswith(f"target {target} matches no parameter; did you mean ")
    assert near in message


def test_an_absent_role_says_which_roles_there_are() -> None:
    with pytest.raises(
        TargetError, match="target vision matches nothing: no parameter has this role; here are attention, e"
    ):
        select("vision", MODEL)
    with pytest.raises(TargetError, match="here are none"):
        select("vision", [])


@pytest.mark.parametrize("target", ["re:(", "re:*x", "re:", "", "  ", "re:[", "re:a{2,1}"])
def test_an_unreadable_target_is_a_target_error(target: str) -> None:
    with pytest.raises(TargetError, match=r"regular expression|names nothing"):
        select(target, MODEL)


def test_assign_gives_each_parameter_to_the_first_target_that_means_it() -> None:
    owner = assign(["model.layers.0.mlp.experts", "routed", "re:.*lm_head", "*.bias", "attention"], MODEL)
    assert owner == {
        "model.layers.0.mlp.experts.0.up_proj.weight": "model.layers.0.mlp.experts",
        "model.layers.1.mlp.experts.0.up_proj.weight": "routed",
        "lm_head.weight": "re:.*lm_head",
        "model.layers.0.self_attn.q_proj.bias": "*.bias",
        "model.layers.1.self_attn.q_proj.bias": "*.bias",
        "model.layers.0.self_attn.q_proj.weight": "attention",
        "model.layers.1.self_attn.q_proj.weight": "attention",
    }


def test_assign_refuses_a_target_that_earlier_ones_leave_nothing_to() -> None:
    with pytest.raises(TargetError) as caught:
        assign(["re:q_proj.weight$", "*.bias", "norm", "attention"], MODEL)
    assert str(caught.value) == (
        "target attention never applies: all it matches is taken by re:q_proj.weight$, *.bias before it"
    )


def test_assign_reports_every_bad_target() -> None:
    with pytest.raises(TargetError) as caught:
        assign(["routd", "routed", "QatLinear", "vision"], MODEL)
    lines = str(caught.value).splitlines()
    assert [line.split()[1] for line in lines] == ["routd", "QatLinear", "vision"]


def test_assign_of_nothing_is_nothing() -> None:
    assert assign([], MODEL) == {}


targets = st.one_of(
    st.sampled_from(["routed", "Linear", "model", "*", "re:.", *(each.name for each in MODEL)]),
    st.sampled_from(ROLES),
    st.text("model.*0re:w[(", max_size=8),
)


@given(target=targets)
def test_select_agrees_with_matches_or_raises(target: str) -> None:
    try:
        chosen = select(target, MODEL)
    except TargetError:
        return
    assert chosen == [each for each in MODEL if matches(target, each)] != []


@given(order=st.lists(targets, max_size=5))
def test_assign_is_first_match_or_raises(order: list[str]) -> None:
    try:
        owner = assign(order, MODEL)
    except TargetError:
        return
    for each in MODEL:
        assert owner.get(each.name) == next((target for target in order if matches(target, each)), None)
