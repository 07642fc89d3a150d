"""Published models at their real sizes, planned on the meta device from the facts that are kept of them."""

from __future__ import annotations

import pytest

from mote_quant.memory import facts
from mote_quant.planning import Plan, plan

GIB = 2**30
# Layers and sizes of the feed-forward networks, as published.
FEED_FORWARD = {
    "Qwen2.5-0.5B": (24, 896, 4864),
    "Qwen2.5-1.5B": (28, 1536, 8960),
    "Qwen2.5-3B": (36, 2048, 11008),
    "Qwen2.5-7B": (28, 3584, 18944),
    "Qwen2.5-VL-3B": (36, 2048, 11008),
    "Qwen3-0.6B": (28, 1024, 3072),
    "Qwen3-1.7B": (28, 2048, 6144),
    "Qwen3-4B": (36, 2560, 9728),
    "Llama-3.2-1B": (16, 2048, 8192),
    "Llama-3.2-3B": (28, 3072, 8192),
    "gemma-3-1b": (26, 1152, 6912),
    "SmolVLM": (24, 2048, 8192),
    "SmolVLM-500M": (32, 960, 2560),
    "SmolVLM-256M": (30, 576, 1536),
    "llava-qwen2.5-1.5b": (28, 1536, 8960),
}
SEEING = {"Qwen2.5-VL-3B", "SmolVLM", "SmolVLM-500M", "SmolVLM-256M", "llava-qwen2.5-1.5b"}


@pytest.fixture(scope="module", params=FEED_FORWARD)
def planned(request: pytest.FixtureRequest) -> tuple[str, Plan]:
    return request.param, plan("mote", request.param)


def test_every_model_that_is_known_is_planned_here() -> None:
    assert sorted(FEED_FORWARD) == facts.names()


def test_the_language_model_becomes_a_mixture_of_ternary_experts(planned: tuple[str, Plan]) -> None:
    name, made = planned
    layers, hidden, inner = FEED_FORWARD[name]
    dense = 3 * layers * hidden * inner
    roles = made.result.roles
    assert len(made.layouts) == layers
    assert roles["routed"].parameters == 4 * dense
    assert roles["shared"].parameters == dense
    assert roles["router"].parameters == 4 * layers * hidden
    # 4 experts of 2 bits and a shared one of 4: twelve bits a dense weight.
    assert made.result.paper_gib["experts"] == pytest.approx(12 / 8 * dense / GIB)
    assert roles["attention"].bits == pytest.approx(8, abs=0.1)


def test_what_sees_stays_as_it_is(planned: tuple[str, Plan]) -> None:
    name, made = planned
    dense, result = made.dense.roles, made.result.roles
    assert ("vision" in result) == (name in SEEING)
    for role in ("vision", "projector", "embedding", "norm", "head"):
        assert result.get(role) == dense.get(role)


def test_the_published_figure() -> None:
    made = plan("mote-qwen2.5-3b")
    assert round(made.result.paper_gib["experts"], 2) == 3.40
    assert round(made.dense.paper_gib["experts"], 2) == 4.54
