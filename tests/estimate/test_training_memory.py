"""What each device holds while it trains: counted by hand, alone and shared, and by going through all of the layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mote_quant.errors import RequestError
from mote_quant.estimate import Training, formulas, imagined
from mote_quant.estimate.sizes import Sizes
from mote_quant.estimate.timeline import BEFORE, BETWEEN, Held, Stretch, Timeline
from mote_quant.moe.block import MoteBlock
from mote_quant.planning import plan_on, skeleton_for
from mote_quant.recipe import load
from tests import pico

HIDDEN, FFN, VOCABULARY, EXPERTS, LAYERS = 32, 48, 96, 4, 2
LAYER = 3 * HIDDEN * FFN
ROUTED, ROUTER = LAYERS * EXPERTS * LAYER, LAYERS * EXPERTS * HIDDEN
TRAINED = ROUTED + ROUTER
DENSE = LAYERS * (LAYER + 2 * 32 * 32 + 2 * 16 * 32) + 2 * VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN
TRAIN = {"what": ["routed", "router"], "data": "pico", "steps": 4, "batch_size": 4, "max_length": 16}


def training(processes: int = 1, model: Any = None, **settings: Any) -> Training:
    recipe = {
        "name": "tiny",
        "bits": {"routed": "ternary"},
        "pipeline": [{"upcycle": {"experts": EXPERTS}}, {"train": TRAIN | settings}, "quantize"],
    }
    loaded, skeleton = load(recipe), skeleton_for(pico.PICO["llama"]() if model is None else model)
    sizes = Sizes(plan_on(loaded, skeleton), skeleton)
    return Training(sizes, loaded.pipeline[1].config, processes)  # type: ignore[arg-type]


def test_weights_states_and_gradients() -> None:
    found = training(batch_size=1, max_length=2).footprint()
    assert found.weights == pytest.approx(4 * (DENSE + TRAINED), rel=0.01)  # rotary tables on top
    assert found.optimizer == 8 * TRAINED
    # Two tokens leave little else behind: the fullest moment is that before the optimizer moves the weights.
    assert found.gradients == 4 * TRAINED
    assert found.activations < found.gradients / 50
    assert (found.exchange, found.teacher, found.kernels) == (0, 0, 0)


def test_logits_and_their_loss_take_three_floats_each() -> None:
    """The loss's log-probabilities, the gradient of those and that of the logits."""
    many, more = (
        training(model=pico.PICO["llama"](vocab_size=size), batch_size=8).footprint().activations
        for size in (4000, 8000)
    )
    assert more - many == pytest.approx(8 * 16 * 4000 * 12, rel=0.001)


def test_accumulated_gradients_are_there_all_the_time() -> None:
    long = {"batch_size": 64}
    once, twice = training(**long).footprint(), training(**long, gradient_accumulation=2).footprint()
    assert once.gradients < twice.gradients == 4 * TRAINED
    assert twice.activations >= once.activations


def test_checkpointing_keeps_little_of_all_layers_but_one() -> None:
    deep = {"layers": 8}
    activations = {
        checkpointed: training(
            model=pico.PICO["llama"](**deep), batch_size=64, gradient_checkpointing=checkpointed
        ).footprint().activations
        for checkpointed in (False, True)
    }  # fmt: skip
    assert activations[True] < activations[False] / 3


def test_latents_in_bfloat16_take_half() -> None:
    full, half = (training(batch_size=1, max_length=2, latents=kind) for kind in ("float32", "bfloat16"))
    assert full.footprint().weights - half.footprint().weights == 2 * ROUTED
    found = half.footprint()
    assert (found.optimizer, found.gradients) == (8 * TRAINED, 2 * ROUTED + 4 * ROUTER)
    # One weight at a time is moved in float32, its gradient too.
    assert found.activations >= 8 * HIDDEN * FFN


def test_states_in_8_bits() -> None:
    from mote_quant.estimate.training import states

    config = training(optimizer="adamw_bnb_8bit").config
    assert states([(4, 2**20), (4, 100)], config) == 2**20 * 2 + 2**20 // 256 * 8 + 800


def test_a_model_in_16_bits_is_trained_in_32() -> None:
    model = pico.PICO["llama"]().to(torch.bfloat16)
    assert training(model=model).footprint().weights == training().footprint().weights
    short = training(model=model, precision="bfloat16").footprint()
    assert short.weights == pytest.approx(2 * DENSE + 4 * TRAINED, rel=0.01)
    assert short.kernels > 0


def test_a_teacher_lies_beside_what_it_teaches(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    taught = training(distill={"teacher": str(tmp_path)})
    assert taught.footprint().teacher == 1000 + 4 * 16 * VOCABULARY * 12


def test_shared_by_ddp_each_process_holds_everything_and_buckets() -> None:
    alone, shared = training(batch_size=2), training(2, batch_size=4)
    one, two = alone.footprint(), shared.footprint("ddp")
    assert two.to_dict() == one.to_dict() | {"exchange": 4 * TRAINED}


def test_shared_by_fsdp2_each_process_holds_its_part_and_two_layers() -> None:
    alone, shared = training(batch_size=1), training(4, batch_size=4)
    one, four = alone.footprint(), shared.footprint("fsdp2")
    assert four.weights == pytest.approx(one.weights / 4, abs=1)
    assert four.optimizer == pytest.approx(one.optimizer / 4, abs=1)
    latent = 4 * EXPERTS * (LAYER + HIDDEN)
    beside = 4 * (2 * VOCABULARY + 1) * HIDDEN
    dense = 4 * (LAYER + 2 * 32 * 32 + 2 * 16 * 32 + 2 * HIDDEN)
    # Backward knows experts by their codes: whole are what is beside them, and their gradients.
    assert four.exchange == beside + 2 * (dense + 4 * EXPERTS * HIDDEN) + 2 * latent
    again = training(4, batch_size=4, gradient_checkpointing=True).footprint("fsdp2")
    assert again.exchange == beside + 2 * (dense + latent) + 2 * latent


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(RequestError, match="4 samples cannot be shared by 3 processes"):
        training(3).footprint()


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"gradient_accumulation": 2}], ids=str)
@pytest.mark.parametrize("what", [["routed", "router"], ["routed", "embedding"]], ids=str)
def test_one_layer_speaks_for_those_like_it(
    settings: dict[str, Any], what: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"model": pico.PICO["llama"](layers=4), "what": what, **settings}
    quick = training(**made).model.timeline
    monkeypatch.setattr(imagined, "_alike", lambda model, layers: list(range(len(layers))))
    every = training(**made).model.timeline
    assert quick is not None
    assert every is not None
    assert len(set(quick.like)) <= 2 < len(set(every.like))
    for share in (1.0, 0.1):
        assert quick.peak(share).weighed(share) == pytest.approx(every.peak(share).weighed(share), rel=0.002)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "gpt2", "opt", "phi", "llava", "qwen2_5_vl"])
def test_families_are_gone_through(family: str) -> None:
    found = training(model=pico.PICO[family]()).model
    assert found.timeline is not None
    assert found.timeline.peak().activations > 0


def test_a_model_that_needs_numbers_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    def asks(self: MoteBlock, hidden: Any, *rest: Any) -> Any:
        return hidden[: int(hidden.argmax())].nonzero()

    monkeypatch.setattr(MoteBlock, "forward", asks)
    found = training()
    assert found.model.timeline is None
    sizes, config = found.sizes, found.config
    assert found.footprint().activations == formulas.activations(sizes, config) + formulas.logits(sizes, config)
    tokens, a_layer = 4 * 16, 16 * HIDDEN + 4 * (2 * (32 + 16) + 3 * FFN) + 4 * (4 * FFN + HIDDEN)
    assert found.footprint().activations == tokens * (LAYERS * a_layer + VOCABULARY * 12)


def test_the_peak_of_stretches_laid_end_to_end() -> None:
    stretches = {
        BEFORE: Stretch([Held(5)], Held(1)),
        ("forward", 0): Stretch([Held(3)], Held(2)),
        BETWEEN: Stretch([Held(4)], Held(0)),
        ("backward", 0): Stretch([Held(1), Held(1, 6)], Held(-2, 6)),
    }
    timeline = Timeline(stretches, [0, 0, 0])
    assert timeline.peak(0.0) == Held(11, 0)
    assert timeline.peak(1.0) == Held(4, 18)
