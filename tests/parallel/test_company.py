"""Two processes over gloo: the same losses and codes as one, and whoever dies, nothing is lost."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from tests import pico, playing
from tests.mixtures import tensors_in

TWO = {"world": 2}
SHARDED = {"world": 2, "sharding": "fsdp2"}
LEARNED = {"bits.routed": {"format": "ternary", "scales": "learned"}, "pipeline.0.upcycle.combine": "zero_init"}
WHOLE = {"pipeline.1.train.what": ["routed", "router", "shared", "attention"]}
BF16 = {"set": WHOLE | {"pipeline.1.train.precision": "bfloat16"}}
ACCUMULATED = {"set": {"pipeline.1.train.gradient_accumulation": 2, "pipeline.1.train.batch_size": 2}}
CHECKPOINTED = {"set": {"pipeline.1.train.gradient_checkpointing": True}}
RICH = {
    "set": {
        "pipeline.1.train.validation": {"every": 2, "samples": 4},
        "pipeline.1.train.guard": {"window": 3},
        "pipeline.1.train.distill": {"teacher": "teacher"},
        "pipeline.1.train.search": {"learning_rates": [1e-3, 2e-3], "steps": 2, "samples": 2},
        "pipeline.1.train.learning_rates": {"router": 3e-4},
    }
}
HIDDEN = {"set": {"pipeline.1.train.distill": {"teacher": "teacher", "hidden": 0.5}}}
LATENTS = {"set": {"pipeline.1.train.latents": "bfloat16"}}
SPIKING = {"spike": 3, "set": LEARNED | {"pipeline.1.train.guard": {"window": 3, "factor": 5.0}}}
ROUTED = {
    "what": ["routed", "router"],
    "data": "pico",
    "steps": 4,
    "batch_size": 4,
    "balance_loss": 0.05,
    "warmup": 0.0,
}
NATIVE = {
    "family": "mixtral",
    "recipe": {"name": "native", "bits": {"routed": "ternary"}, "pipeline": [{"train": ROUTED}, "quantize"]},
}
MIXED = {"family": "qwen2", "set": WHOLE | {"pipeline.1.train.latents": "bfloat16"}}
LATE = {"dies": {"rank": 1, "at": 5}}

SCENARIOS = {
    "one": [{}],
    "ddp": [TWO],
    "fsdp2": [SHARDED | {"gathering": True}],
    "one learned": [{"set": LEARNED}],
    "fsdp2 learned": [SHARDED | {"set": LEARNED}],
    "one bf16": [BF16],
    "fsdp2 bf16": [SHARDED | BF16],
    "one accumulated": [ACCUMULATED],
    "ddp accumulated": [TWO | ACCUMULATED],
    "fsdp2 accumulated": [SHARDED | ACCUMULATED],
    "fsdp2 killed": [SHARDED | LATE, SHARDED],
    "ddp killed": [TWO | LATE, TWO],
    "two then one": [SHARDED | LATE, {}],
    "one then four": [{"dies": {"rank": 0, "at": 5}}, {"world": 4, "sharding": "fsdp2"}],
    "sharded then not": [SHARDED | LATE, TWO],
    "ddp checkpointed": [TWO | CHECKPOINTED],
    "fsdp2 checkpointed": [SHARDED | CHECKPOINTED],
    "one rich": [RICH],
    "ddp rich": [TWO | RICH],
    "fsdp2 rich": [SHARDED | RICH],
    "one hidden": [HIDDEN],
    "fsdp2 hidden": [SHARDED | HIDDEN],
    "one in 16 bits": [LATENTS],
    "fsdp2 in 16 bits": [SHARDED | LATENTS],
    "one spiking": [SPIKING],
    "fsdp2 spiking": [SHARDED | SPIKING],
    "one native": [NATIVE],
    "ddp native": [TWO | NATIVE],
    "fsdp2 native": [SHARDED | NATIVE],
    "one mixed": [MIXED],
    "fsdp2 mixed": [SHARDED | MIXED],
    "dies writing": [TWO | {"dies_writing": 1}],
    "odd batch": [{"world": 3}],
    "another recipe": [TWO | LATE, TWO | {"set": {"pipeline.1.train.learning_rate": 0.1}}],
    "nothing trains": [TWO | {"set": {"pipeline": [{"quantize": {}}], "bits": {"ffn": "int4"}}}],
    "not a number": [TWO | {"set": {"pipeline.1.train.learning_rate": 1e30, "pipeline.1.train.max_grad_norm": 1e30}}],
}
LIKE = {
    "ddp": "one", "fsdp2": "one", "fsdp2 learned": "one learned", "ddp accumulated": "one accumulated",
    "fsdp2 accumulated": "one accumulated", "two then one": "one", "one then four": "one", "sharded then not": "one",
    "ddp rich": "one rich", "fsdp2 rich": "one rich",
}  # fmt: skip


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    work = tmp_path_factory.mktemp("company")
    return work, playing.played("tests.company", work, SCENARIOS)


def trained(folder: Path, step: int = 1) -> dict:
    return json.loads((folder / "run" / "report.json").read_text())["steps"][step]


@pytest.mark.parametrize(("name", "base"), LIKE.items())
def test_several_processes_make_what_one_makes(played, name, base):
    work, answers = played
    assert all(isinstance(said, dict) and "error" not in said for said in answers[name][-1]), answers[name]
    one, other = (trained(work / folder) for folder in (base, name))
    assert [p["step"] for p in one["curve"]] == [p["step"] for p in other["curve"]]
    torch.testing.assert_close(
        torch.tensor([p["loss"] for p in other["curve"]]), torch.tensor([p["loss"] for p in one["curve"]]),
        rtol=1e-5, atol=1e-5,
    )  # fmt: skip
    assert one["tokens"] == other["tokens"]
    assert one.get("search", {}).get("learning_rate") == other.get("search", {}).get("learning_rate")
    for ours, theirs in zip(one["curve"], other["curve"], strict=True):
        assert theirs.keys() == ours.keys()
        assert theirs == pytest.approx(ours, rel=1e-4)
    ours, theirs = tensors_in(work / base), tensors_in(work / name)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        if tensor.is_floating_point() and ("gate." in key or "learned" in base):
            torch.testing.assert_close(theirs[key], tensor, rtol=1e-3, atol=1e-4, msg=key)
        elif "learned" not in base:
            assert torch.equal(theirs[key], tensor), key


def test_a_step_that_is_left_out_moves_nothing_on_shards_either(played):
    work, _ = played
    one, two = (trained(work / name) for name in ("one spiking", "fsdp2 spiking"))
    assert [rollback["step"] for rollback in one["rollbacks"]] == [rollback["step"] for rollback in two["rollbacks"]]
    assert one["rollbacks"]
    for ours, theirs in zip(one["curve"], two["curve"], strict=True):
        assert theirs == pytest.approx(ours, rel=1e-5)


@pytest.mark.parametrize("name", ["ddp native", "fsdp2 native"])
def test_experts_a_model_came_with_are_trained_alike(played, name):
    work, answers = played
    assert all("error" not in said for said in answers[name][-1]), answers[name]
    one, two = (trained(work / folder, 0)["curve"] for folder in ("one native", name))
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=5e-4)
    # Its own balance loss sees the tokens of each process apart.
    for ours, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-2)


def test_what_trains_in_several_types_is_sharded_all_the_same(played):
    work, answers = played
    assert all("error" not in said for said in answers["fsdp2 mixed"][-1]), answers["fsdp2 mixed"]
    one, two = (trained(work / folder)["curve"] for folder in ("one mixed", "fsdp2 mixed"))
    for ours, theirs in zip(one, two, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-3)


def test_who_dies_while_a_checkpoint_is_written_is_no_full_disk(played):
    _, answers = played
    survivor, victim = answers["dies writing"][0]
    assert victim == -signal.SIGKILL
    assert survivor["error"] == "RunError"
    assert "lost the others" in survivor["message"]


def test_figures_are_those_of_all_processes(played):
    work, _ = played
    one, two = (trained(work / name)["figures"] for name in ("one", "fsdp2"))
    for ours, theirs in zip(one, two, strict=True):
        for layer, routing in ours["routing"].items():
            for figure, value in routing.items():
                assert theirs["routing"][layer][figure] == pytest.approx(value, abs=1e-4), figure
        assert theirs["codes"].keys() == ours["codes"].keys()
        for place, shares in ours["codes"].items():
            assert theirs["codes"][place] == pytest.approx(shares, abs=2e-3)
        assert theirs["gradients"] == pytest.approx(ours["gradients"], rel=1e-3)


def test_learned_scales_and_codes_are_those_of_one_process_to_rounding(played):
    work, _ = played
    ours, theirs = tensors_in(work / "one learned"), tensors_in(work / "fsdp2 learned")
    codes = [key for key in ours if "experts" in key and ours[key].dtype == torch.uint8]
    same = [torch.equal(ours[key], theirs[key]) for key in codes]
    assert codes
    assert sum(same) / len(same) > 0.9


@pytest.mark.parametrize("kind", ["bf16", "in 16 bits", "hidden"])
def test_where_each_process_rounds_or_measures_its_own_losses_are_close(played, kind):
    work, answers = played
    assert all("error" not in said for said in answers[f"fsdp2 {kind}"][-1])
    one, two = (trained(work / name)["curve"] for name in (f"one {kind}", f"fsdp2 {kind}"))
    for ours, theirs in zip(one, two, strict=True):
        assert abs(ours["loss"] - theirs["loss"]) < 0.02 * ours["loss"]


@pytest.mark.parametrize("name", ["fsdp2", "ddp"])
def test_a_killed_process_ends_the_others_and_all_go_on_to_the_same_bits(played, name):
    work, answers = played
    (survivor, victim), after = answers[f"{name} killed"]
    assert victim == -signal.SIGKILL
    assert survivor["error"] == "RunError"
    assert "lost the others" in survivor["message"]
    assert "same command" in survivor["message"]
    assert any("going on after step 4" in notice for notice in after[0]["notices"])
    ours, theirs = tensors_in(work / name), tensors_in(work / f"{name} killed")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize(
    ("name", "before", "now"),
    [("two then one", "2 processes", "is one process"), ("one then four", "one process", "are 4 processes")],
)
def test_another_number_of_processes_goes_on_and_says_so(played, name, before, now):
    _, answers = played
    said = answers[name][-1][0]["notices"]
    assert any(f"written by {before}, now there {now}:" in notice for notice in said), said


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("odd batch", "RequestError", "4 samples cannot be shared by 3 processes"),
        ("another recipe", "FingerprintError", "learning_rate was 0.002, is now 0.1"),
        ("nothing trains", "RequestError", "nothing in this recipe trains"),
        ("not a number", "TrainingError", "the loss is nan"),
    ],
)
def test_what_cannot_be_is_the_same_error_everywhere(played, name, kind, text):
    _, answers = played
    for said in answers[name][-1]:
        assert said["error"] == kind
        assert text in said["message"]


def test_latent_weights_come_back_packed_one_at_a_time(played):
    _, answers = played
    for said in answers["fsdp2"][-1]:
        assert not said["latent"]
        assert not said["meta"]
        model = pico.PICO["llama"]()
        dense = sum(parameter.numel() for parameter in model.parameters())
        largest = 48 * 32
        experts = 2 * 4 * 3 * largest
        # All of them went by; beside the dense model no process held more than one.
        assert said["gathered"]["all"] >= dense + experts - 1000
        assert said["gathered"]["most"] <= dense + largest


@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_checkpointed_activations_change_nothing(played, name):
    work, answers = played
    assert all("error" not in said for said in answers[f"{name} checkpointed"][-1])
    ours, theirs = tensors_in(work / name), tensors_in(work / f"{name} checkpointed")
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
