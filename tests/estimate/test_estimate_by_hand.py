"""Memory, disk and work of a pico Llama, held against numbers counted by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mote_quant.errors import RequestError
from mote_quant.estimate import Estimate, Rates, estimate, memory, require_room, work, written
from mote_quant.estimate.disk import checkpoints, disk, held
from mote_quant.estimate.sizes import Sizes
from mote_quant.machine import Machine
from mote_quant.planning import plan_on, skeleton_for
from mote_quant.recipe import load
from mote_quant.recipe.schema import Quantize, Train
from tests import pico

HIDDEN, FFN, LAYERS, VOCABULARY, EXPERTS = 32, 48, 2, 96, 4
DENSE_FFN = LAYERS * 3 * HIDDEN * FFN
ATTENTION = LAYERS * (2 * 32 * 32 + 2 * 16 * 32)  # two heads of 16 and one for keys and values
DENSE = DENSE_FFN + ATTENTION + 2 * VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN
ROUTED, ROUTER = EXPERTS * DENSE_FFN, LAYERS * EXPERTS * HIDDEN
TRAINED = ROUTED + ROUTER
TRAIN = {"what": ["routed", "router"], "data": "pico", "steps": 40, "batch_size": 2, "max_length": 16}
RECIPE: dict[str, Any] = {
    "name": "tiny",
    "bits": {
        "routed": "ternary",
        "shared": {"format": "int4", "group_size": 16, "method": "gptq"},
        "router": "float32",
    },
    "pipeline": [
        {"upcycle": {"experts": EXPERTS}},
        {"train": TRAIN},
        {"quantize": {"calibration": {"data": "pico", "samples": 8, "batch_size": 2, "max_length": 16}}},
    ],
}
MACHINE = Machine(total_memory=2**34, free_memory=2**33, free_disk=2**40, threads=2)
RATES = Rates(read=1e6, write=1e5, copy=1e7, hash=1e6, float32=1e8, bfloat16=2e8, rounding=1e5)


def sizes_of(recipe: dict[str, Any] = RECIPE, **model: Any) -> Sizes:
    skeleton = skeleton_for(pico.PICO["llama"](**model))
    return Sizes(plan_on(load(recipe), skeleton), skeleton)


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    return sizes_of()


def step(sizes: Sizes, index: int) -> Any:
    return sizes.plan.recipe.pipeline[index].config


def test_sizes(sizes: Sizes) -> None:
    assert sizes.dense_bytes == pytest.approx(4 * DENSE, rel=0.01)  # rotary tables on top
    assert sizes.width == 4
    assert sizes.experts_bytes == 4 * ROUTED
    assert sizes.active == ATTENTION + DENSE_FFN + ROUTER + ROUTED // EXPERTS + VOCABULARY * HIDDEN
    assert (sizes.feed_forward, sizes.attention) == (FFN, 2 * (32 + 16))
    assert {item.name.rpartition(".")[2]: (item.rows, item.columns) for item in sizes.rounded} == {
        "gate_proj": (FFN, HIDDEN),
        "up_proj": (FFN, HIDDEN),
        "down_proj": (HIDDEN, FFN),
    }
    assert [sum(row["trained"].values()) for row in sizes.plan.trained] == [TRAINED]


def test_two_experts_of_four_see_a_token() -> None:
    both = RECIPE | {"pipeline": [{"upcycle": {"experts": EXPERTS, "top_k": 2}}, *RECIPE["pipeline"][1:]]}
    assert sizes_of(both).active - sizes_of().active == ROUTED // EXPERTS


def test_hessians_of_one_layer(sizes: Sizes) -> None:
    assert memory.hessians(sizes) == 4 * (HIDDEN**2 + FFN**2)
    attention = RECIPE | {
        "bits": RECIPE["bits"] | {"attention": {"format": "int4", "group_size": 16, "method": "gptq"}}
    }
    assert memory.hessians(sizes_of(attention)) == 4 * (HIDDEN**2 + FFN**2 + 2 * HIDDEN**2)
    rounded = RECIPE | {"bits": RECIPE["bits"] | {"shared": "int4"}}
    assert memory.hessians(sizes_of(rounded)) == 0


def test_states_and_checkpoints_lie_beside_each_other(sizes: Sizes) -> None:
    state, checkpoint = 4 * DENSE + 4 * ROUTED, 12 * TRAINED
    found = disk(sizes, streamed=False)
    assert found.output == sizes.plan.result.stored_bytes
    assert found.running == max(2 * checkpoint, checkpoint + state)
    assert found.temporary == 0
    assert disk(sizes, streamed=True).running == found.output


@pytest.mark.parametrize(
    ("settings", "weights", "states", "lie", "best"),
    [
        ({}, 4 * TRAINED, 8 * TRAINED, 2, 0),
        ({"guard": {}}, 4 * TRAINED, 8 * TRAINED, 3, 0),
        ({"latents": "bfloat16"}, 2 * ROUTED + 4 * (TRAINED - ROUTED), 8 * TRAINED, 2, 0),
        ({"optimizer": "adamw_torch_8bit"}, 4 * TRAINED, 2.03125 * TRAINED, 2, 0),
        ({"validation": {"every": 10, "keep_best": True}}, 4 * TRAINED, 8 * TRAINED, 2, 2),
    ],
    ids=["float32", "guard", "bfloat16", "8 bits", "the best"],
)
def test_checkpoints_are_of_what_is_held(
    settings: dict[str, Any], weights: int, states: float, lie: int, best: int
) -> None:
    training = {"train": TRAIN | settings}
    sizes = sizes_of(RECIPE | {"pipeline": [RECIPE["pipeline"][0], training, RECIPE["pipeline"][2]]})
    config = sizes.plan.recipe.pipeline[1].config
    assert held(sizes, config, sizes.plan.trained[0]["trained"]) == (weights, math.ceil(states))
    during = (weights + math.ceil(states)) * lie + best * weights
    after = 4 * DENSE + 4 * ROUTED + (weights + math.ceil(states)) * (lie - 1) + best // 2 * weights
    assert disk(sizes, streamed=False).running == max(during, after)


@pytest.mark.parametrize(
    ("more", "each"),
    [
        ({}, 4 * VOCABULARY),
        ({"top_k": 5}, 5 * (4 + 4) + 4),
        ({"top_k": 5, "hidden": 1.0}, 5 * (4 + 4) + 4 + 4 * LAYERS * HIDDEN),
    ],
)
def test_what_a_teacher_says_is_at_most_a_lesson_for_each_label(more: dict[str, Any], each: int) -> None:
    taught = TRAIN | {"distill": {"teacher": "t", "cache": "c", **more}, "gradient_accumulation": 3}
    steps = [RECIPE["pipeline"][0], {"train": taught}, RECIPE["pipeline"][2]]
    assert disk(sizes_of(RECIPE | {"pipeline": steps}), streamed=False).lessons == 40 * 3 * 2 * 15 * each
    del taught["distill"]
    assert disk(sizes_of(RECIPE | {"pipeline": steps}), streamed=False).lessons == 0


@pytest.mark.parametrize(("every", "count"), [(None, 10), (20, 2), (40, 1), (41, 0)])
def test_checkpoints(sizes: Sizes, every: int | None, count: int) -> None:
    config: Train = step(sizes, 1)
    assert checkpoints(config.model_copy(update={"checkpoint_every": every})) == count


def test_hidden_states_that_do_not_fit_wait_on_the_disk(sizes: Sizes) -> None:
    config: Quantize = step(sizes, 2)
    calibration = config.calibration
    assert calibration is not None
    many = config.model_copy(update={"calibration": calibration.model_copy(update={"samples": 80_000})})
    assert memory.spilled(sizes, many) == 90_000 * 16 * HIDDEN * 4 - 64 * 2**20
    assert memory.spilled(sizes, config) == 0


def test_seconds_are_work_over_rates(sizes: Sizes) -> None:
    low, high = work.saving(sizes, RATES)
    seconds = sizes.result_bytes * (1 / 1e5 + 1 / 1e6)
    assert (low, high) == pytest.approx((seconds / 2, 3 * seconds))
    config = step(sizes, 1)
    share = TRAINED / (ATTENTION + DENSE_FFN + ROUTED)
    forward = 2 * sizes.active * 32 / 1e8
    one = forward * (2 + share) + TRAINED / 1e5 + 12 * TRAINED * 2 / 1e7
    written_bytes = 10 * 12 * TRAINED + 4 * DENSE + 4 * ROUTED
    total = 40 * one + written_bytes * (1 / 1e5 + 1 / 1e6)
    assert work.training(sizes, config, {"routed": ROUTED, "router": ROUTER}, RATES)[0] == pytest.approx(total / 2)


def told(machine: Machine = MACHINE, rates: Rates | None = RATES, why_not: str | None = "it trains") -> Estimate:
    sizes = sizes_of()
    return estimate(sizes.plan, sizes.skeleton, machine, rates, why_not)


def test_parts_in_their_order_and_altogether() -> None:
    found = told()
    assert [part.name for part in found.parts] == ["loading", "upcycle", "train", "quantize", "saving"]
    assert found.peak == max(part.memory for part in found.parts)
    assert found.seconds is not None
    assert found.seconds[0] == pytest.approx(sum(part.seconds[0] for part in found.parts if part.seconds))
    assert not found.streamed
    assert found.warnings() == []
    assert told(rates=None).seconds is None


def test_training_takes_place_on_an_accelerator() -> None:
    gpu = replace(MACHINE, accelerator="A", accelerator_total=2**30, accelerator_free=2**20)
    found = told(gpu)
    assert {part.name for part in found.parts if part.on_accelerator} == {"train", "quantize"}
    assert found.accelerator_peak > 2**20
    assert ["memory on A" in warning for warning in found.warnings()] == [True]


def test_too_little_memory_is_a_warning() -> None:
    (warning,) = told(replace(MACHINE, free_memory=2**20)).warnings()
    assert "1.00 MiB is free" in warning


def test_too_little_disk_is_refused(tmp_path: Path) -> None:
    found = told(replace(MACHINE, free_disk=1000))
    with pytest.raises(RequestError, match=r"1000 B free.*checkpoints"):
        require_room(found, tmp_path)
    (warning,) = found.warnings()
    assert "of disk, 1000 B is free" in warning
    nearly = replace(found, there=found.disk.running - 1000)
    require_room(nearly, tmp_path)
    assert nearly.warnings() == []
    require_room(told(replace(MACHINE, free_disk=None)), tmp_path)


def test_a_file_with_two_names_is_written_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(100))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "b").hardlink_to(tmp_path / "a")
    assert written(tmp_path) == 100
    assert written(tmp_path / "absent") == 0
