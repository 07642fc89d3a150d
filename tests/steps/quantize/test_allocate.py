from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mote_quant
from mote_quant.errors import CalibrationError, FormatError, RecipeError, RequestError
from mote_quant.hf.loading import load_model
from mote_quant.hf.unfuse import unfuse
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe import blocks
from mote_quant.planning import plan
from mote_quant.recipe import load
from mote_quant.recipe.schema import AutoBits
from mote_quant.steps.base import Silent
from mote_quant.steps.quantize.allocate import check_budgets, decide_formats
from mote_quant.steps.quantize.allocate.budget import cost, limit, stored_bytes
from mote_quant.steps.quantize.allocate.routing import Routing
from mote_quant.steps.quantize.allocate.sensitivity import Meter
from mote_quant.steps.quantize.allocate.solver import Option, least_cost, solve
from mote_quant.steps.quantize.allocate.trials import Trials
from mote_quant.steps.quantize.allocate.units import Unit, units_of
from mote_quant.steps.quantize.measure import Reference
from tests import pico
from tests.mixtures import bits_of, logits, mixture
from tests.sources import source_for

# -- the solver ---------------------------------------------------------------------------------------------------

option = st.builds(Option, st.integers(0, 20), st.one_of(st.integers(-3, 6), st.floats(0.0, 5.0)))
units = st.lists(st.lists(option, min_size=1, max_size=4), max_size=6)


def brute_force(options, budget):
    """The least loss within the budget, over every combination; None when nothing is."""
    losses = [
        sum(each.loss for each in chosen)
        for chosen in itertools.product(*options)
        if sum(each.cost for each in chosen) <= budget
    ]
    return min(losses, default=None)


@settings(max_examples=300, deadline=None)
@given(options=units, budget=st.integers(0, 80))
def test_the_solution_is_the_best_there_is(options, budget):
    solution, best = solve(options, budget), brute_force(options, budget)
    if solution is None:
        assert best is None
        assert least_cost(options) > budget
        return
    taken = [each[index] for each, index in zip(options, solution.chosen, strict=True)]
    assert solution.cost == sum(each.cost for each in taken) <= budget
    assert solution.loss == pytest.approx(sum(each.loss for each in taken))
    assert solution.loss == pytest.approx(best, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), budget=st.floats(0.0, 1.0))
def test_many_units_are_never_worse_than_a_uniform_choice_they_can_pay(data, budget):
    sizes = data.draw(st.lists(st.sampled_from([96, 128, 4096]), min_size=30, max_size=30))
    scale = data.draw(st.lists(st.floats(1e-6, 1e3), min_size=30, max_size=30))
    options = [
        [Option(bits * size, factor * 4.0**-bits) for bits in (2, 3, 4)]
        for size, factor in zip(sizes, scale, strict=True)
    ]
    total = int((2 + 2 * budget) * sum(sizes))
    solution = solve(options, total)
    assert solution.cost <= total
    for index in range(3):
        if sum(each[index].cost for each in options) <= total:
            assert solution.loss <= sum(each[index].loss for each in options) * (1 + 1e-9)


def test_nothing_to_decide_costs_nothing():
    assert solve([], 0).chosen == ()


# -- budgets ------------------------------------------------------------------------------------------------------


def auto(**settings) -> AutoBits:
    given = {"format": "auto", "choices": ["int2", "int3", "int4"], "group_size": 16, "method": "gptq"} | settings
    return AutoBits(**given if "budget" in given else {"average_bits": 2.5} | given)


@pytest.mark.parametrize(("bits", "weights", "budget"), [(2.3, 10, 23), (2.5, 3, 7), (3.0, 7, 21), (8.0, 5, 40)])
def test_average_bits_mean_what_is_written(bits, weights, budget):
    assert limit(auto(average_bits=bits), weights) == budget


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_byte_budget_counts_what_is_stored(symmetric):
    spec = auto(budget="1MiB", symmetric=symmetric)
    assert limit(spec, 10) == 2**20
    for format in spec.choices:
        packed = PackedLinear.empty(spec.choice(format), 48, 32, False, torch.float32)
        stored = sum(buffer.nbytes for buffer in packed.buffers())
        assert cost(spec, format, (32, 48)) == stored == stored_bytes(spec.choice(format), (32, 48))
    assert cost(auto(), "int3", (32, 48)) == 3 * 32 * 48


def test_a_budget_that_is_too_small_says_the_least_that_fits():
    model = mixture(shared="none", top_k=2)
    names = routed(model)
    least = sum(stored_bytes(auto().choice("int2"), tuple(model.get_submodule(name).weight.shape)) for name in names)
    with pytest.raises(FormatError, match=rf"budget of {least - 1}.* for 24 modules.*{least} bytes"):
        check_budgets(dict.fromkeys(names, auto(budget=str(least - 1))), model)
    check_budgets(dict.fromkeys(names, auto(budget=str(least))), model)
    with pytest.raises(FormatError, match=r"average_bits 1.9 .*2 bits a weight"):
        check_budgets(dict.fromkeys(names, auto(average_bits=1.9)), model)
    with pytest.raises(RequestError, match="is not a size"):
        check_budgets(dict.fromkeys(names, auto(budget="much")), model)


# -- units --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decide", "expected"),
    [
        ("module", ["h.0.e.0.up", "h.0.e.0.down", "h.0.e.1.up", "h.1.e.0.up", "lm_head"]),
        ("expert", ["h.0.e.0", "h.0.e.1", "h.1.e.0", "lm_head"]),
        ("layer", ["h.0", "h.1", "lm_head"]),
    ],
)
def test_units(decide, expected):
    names = ["h.0.e.0.up", "h.0.e.0.down", "h.0.e.1.up", "h.1.e.0.up", "lm_head"]
    found = units_of(dict.fromkeys(names, auto(decide=decide)), ["h.0", "h.1"])
    assert [unit.name for unit in found] == expected
    assert [name for unit in found for name in unit.modules] == names


def test_equal_rules_stay_apart():
    found = units_of({"a.x": auto(decide="expert"), "a.y": auto(decide="expert")}, [])
    assert [unit.modules for unit in found] == [("a.x",), ("a.y",)]


# -- sensitivity --------------------------------------------------------------------------------------------------


def batches(model, count=3, padded=False, **shape):
    found = [pico.inputs(model, seed=seed, **({"batch": 4, "length": 12} | shape)) for seed in range(count)]
    for batch in found:
        batch.pop("labels")
        if padded:
            batch["attention_mask"][1:, 5:] = 0
    return found


def routed(model) -> list[str]:
    return [n for n, m in model.named_modules() if ".experts." in n and isinstance(m, torch.nn.Linear)]


def hooked(model) -> list[int]:
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]


def native():
    model = pico.qwen2_moe(num_experts_per_tok=2)
    unfuse(model, [f"model.layers.{layer}.mlp.experts" for layer in range(2)])
    return model.eval()


def moe(**settings):
    return mixture(**({"shared": "none", "top_k": 2, "router_std": 1.0} | settings)).eval()


@torch.no_grad()
@pytest.mark.parametrize("build", [moe, native])
def test_the_error_of_an_expert_is_how_far_its_layer_output_moves(build):
    model = build()
    (batch,) = batches(model, 1)
    name = next(name for name in routed(model) if "layers.1" in name and name.endswith("1.down_proj"))
    unit, expert = Unit(name, auto(), (name,)), name.rpartition(".")[0]
    other = torch.randn_like(model.get_submodule(name).weight)
    outputs = []
    layer = model.model.layers[1].mlp
    handle = layer.register_forward_hook(lambda m, a, out: outputs.append(out))
    model(**batch)
    routing = Routing(model, [None])
    trials = Trials(
        model, {expert: {(unit, "int2"): {name: other}}}, lambda block, rows: routing.experts[block].running
    )
    with routing.watching([name], count=True), trials.watching():
        model(**batch)
    model.get_submodule(name).weight.copy_(other)
    model(**batch)
    handle.remove()
    assert torch.equal(outputs[0], outputs[1])  # while trying, the model does what it always does
    expected = float((outputs[2] - outputs[0]).square().sum())
    assert trials.errors[expert, (unit, "int2")] == pytest.approx(expected, rel=1e-3)
    traffic = routing.experts[expert]
    assert 0 < traffic.tokens < traffic.offered == 48
    assert 0.0 < traffic.gate <= 1.0


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_predictions_of_the_middle_choice_are_measured(padded):
    model = moe(layers=1)
    names, shown = routed(model), batches(model, padded=padded)
    spec = auto(method="rtn", decide="expert")
    found = Meter(model, units_of(dict.fromkeys(names, spec), []), shown).measure(Silent())
    reference = Reference(model, shown)
    for name in names:
        linear = model.get_submodule(name)
        tensors = mote_quant.steps.quantize.methods.rtn(linear.weight, spec.choice("int3"))
        linear.weight.copy_(PackedLinear.pack(spec.choice("int3"), tensors, None, torch.float32).dequantize())
    kl = reference.distance(model).kl
    assert kl > 1e-4
    assert sum(each.losses["int3"] for each in found.values()) == pytest.approx(kl, rel=1e-3)
    assert all(each.losses["int2"] > each.losses["int3"] > each.losses["int4"] > 0 for each in found.values())
    assert sum(each.frequency for each in found.values()) == pytest.approx(2.0)


@pytest.mark.parametrize("part", [".experts.", ".self_attn."])
def test_padding_has_no_say(part):
    model = moe(layers=1)
    names = [n for n, m in model.named_modules() if part in n and isinstance(m, torch.nn.Linear)]
    units = units_of(dict.fromkeys(names, auto(method="rtn")), [])
    padded, bare = batches(model, padded=True), batches(model, padded=True)
    for batch in padded:  # other tokens where the padding is
        batch["input_ids"][batch["attention_mask"] == 0] = 17
    first, second = (list(Meter(model, units, each).measure(Silent()).values()) for each in (padded, bare))
    for ours, theirs in zip(first, second, strict=True):
        assert ours.frequency == theirs.frequency
        assert ours.losses == pytest.approx(theirs.losses, rel=1e-4)


def test_an_expert_that_no_token_reaches_gets_the_least_and_no_nan():
    model = moe()
    with torch.no_grad():
        for block in blocks(model).values():
            block.gate.weight[2:] = 0.0
            block.gate.weight[:2] = 0.0
        # Equal logits: the first two experts win every tie.
    notes: dict = {}
    decided = decide_formats(
        model, dict.fromkeys(routed(model), auto(average_bits=3.0)), batches(model), Silent(), notes
    )
    rows = notes["allocation"]["units"]
    unhit = [row for row in rows if row["frequency"] == 0.0]
    assert len(unhit) == 12
    assert all(row["format"] == decided[row["unit"]].format == "int2" and row["tokens"] == 0 for row in unhit)
    assert all(row["format"] == "int4" for row in rows if row not in unhit)
    assert all(math.isfinite(loss) for row in rows for loss in predicted(row).values())


def test_mc_counts_frequency_and_weight_once_more():
    model = moe(layers=1)
    rules = [auto(decide="expert", sensitivity=kind) for kind in ("logits", "mc")]
    plain, weighted = (
        list(Meter(model, units_of(dict.fromkeys(routed(model), spec), []), batches(model)).measure(Silent()).values())
        for spec in rules
    )
    ratios = [
        b.losses["int2"] / a.losses["int2"] / (a.frequency**2 * a.gate) for a, b in zip(plain, weighted, strict=True)
    ]
    assert ratios == pytest.approx([ratios[0]] * 4)
    assert len({round(each.frequency, 3) for each in plain}) > 1


def predicted(row):
    """Predicted KL by format of a row of the `units` table."""
    return {key.removeprefix("predicted_kl_"): value for key, value in row.items() if key.startswith("predicted_kl_")}


# -- decisions ----------------------------------------------------------------------------------------------------


def test_the_expert_that_matters_most_gets_the_most_bits():
    model = moe()
    loud = [name for name in routed(model) if ".experts.1." in name]
    with torch.no_grad():
        for name in loud:
            model.get_submodule(name).weight.mul_(3.0)
    notes: dict = {}
    spec = auto(decide="expert", average_bits=2.5)
    decided = decide_formats(model, dict.fromkeys(routed(model), spec), batches(model), Silent(), notes)
    others = [decided[name].format for name in routed(model) if name not in loud]
    assert max(others) <= min(decided[name].format for name in loud)
    assert "int2" in others


@pytest.mark.parametrize("decide", ["module", "expert", "layer"])
@pytest.mark.parametrize(
    "settings", [{"average_bits": 2.7}, {"budget": "18KB"}, {"average_bits": 3, "sensitivity": "mc"}]
)
def test_budgets_are_kept_and_the_model_is_left_alone(decide, settings):
    model = moe()
    before, names, notes, hooks = bits_of(model.state_dict()), routed(model), {}, hooked(model)
    spec = auto(decide=decide, **settings)
    decided = decide_formats(model, dict.fromkeys(names, spec), batches(model), Silent(), notes)
    assert list(decided) == names
    (rule,) = notes["allocation"]["rules"]
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in names}
    spent = sum(cost(spec, decided[name].format, shapes[name]) for name in names)
    assert rule["spent"] == spent <= rule["budget"] == spent + rule["slack"]
    chosen, *uniform = notes["allocation"]["mixes"]
    assert [row["format"] for row in uniform] == ["int2", "int3", "int4"]
    fitting = [row["predicted_kl"] for row in uniform if row["within_budget"]]
    assert fitting
    assert chosen["predicted_kl"] <= min(fitting) * (1 + 1e-9)
    assert chosen["bytes"] == sum(stored_bytes(decided[name], shapes[name]) for name in names)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert hooked(model) == hooks


def test_every_rule_has_its_own_budget():
    model = mixture(shared="keep").eval()
    shared = [n for n, m in model.named_modules() if ".shared_expert." in n and isinstance(m, torch.nn.Linear)]
    attention = [n for n, m in model.named_modules() if "self_attn." in n and isinstance(m, torch.nn.Linear)]
    autos = dict.fromkeys(shared, auto(average_bits=2.0)) | dict.fromkeys(attention, auto(average_bits=4.0))
    notes: dict = {}
    decided = decide_formats(model, autos, batches(model), Silent(), notes)
    assert {decided[name].format for name in shared} == {"int2"}
    assert {decided[name].format for name in attention} == {"int4"}
    assert [rule["slack"] for rule in notes["allocation"]["rules"]] == [0, 0]
    assert [row["rule"] for row in notes["allocation"]["units"]] == [1] * len(shared) + [2] * len(attention)
    assert all(row["frequency"] == 1.0 for row in notes["allocation"]["units"])


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "llava"])
def test_any_linear_layer_of_any_family(family):
    model = pico.PICO[family]().eval()
    names = [n for n, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D") and "lm_head" not in n]
    notes: dict = {}
    decided = decide_formats(model, dict.fromkeys(names, auto(group_size=8)), batches(model), Silent(), notes)
    losses = [predicted(row) for row in notes["allocation"]["units"] if row["tokens"]]
    assert len(losses) > len(names) / 2
    assert all(each["int2"] > each["int4"] > 0.0 for each in losses)
    assert set(decided) == set(names)


def test_two_runs_decide_alike():
    model = moe()
    autos = dict.fromkeys(routed(model), auto())
    first, second = (decide_formats(model, autos, batches(model), Silent(), {}) for _ in range(2))
    assert first == second


def test_logits_that_are_not_finite_decide_nothing():
    model = moe()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("inf"))
    with pytest.raises(CalibrationError, match="is not finite"):
        decide_formats(model, dict.fromkeys(routed(model), auto()), batches(model), Silent(), {})


def test_needs_batches():
    model = moe()
    with pytest.raises(CalibrationError, match="bits: auto looks at samples"):
        decide_formats(model, dict.fromkeys(routed(model), auto()), [], Silent(), {})


def recipe(bits, **quantize):
    return {
        "name": "auto",
        "bits": {"routed": {"format": "auto", "group_size": 16, "method": "gptq"} | bits},
        "pipeline": [
            {"upcycle": {"shared": "none", "top_k": 2, "noise": 0.3, "router_std": 0.3}},
            {"quantize": {"calibration": {"data": "pico", "samples": 8, "batch_size": 4}} | quantize},
        ],
    }


@pytest.mark.parametrize(
    ("slip", "words"),
    [
        ({"average_bits": 2.5, "budget": "18KB"}, "either average_bits or budget"),
        ({}, "either average_bits or budget"),
        ({"average_bits": 9.0}, "at most 8"),
        ({"average_bits": 2.5, "choices": ["int3"]}, "at least two formats"),
        ({"average_bits": 2.5, "choices": ["int3", "int3"]}, "int3 is named twice"),
        ({"average_bits": 2.5, "choices": ["int3", "nf4"]}, "nf4"),
        ({"average_bits": 2.5, "backend": "gptqmodel"}, "leave backend out"),
        ({"average_bits": 2.5, "decide": "role"}, "role"),
    ],
)
def test_a_slip_is_refused_where_it_stands(slip, words):
    with pytest.raises(RecipeError, match=r"bits\.routed") as caught:
        load(recipe(slip))
    assert words in str(caught.value)


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_auto_needs_calibration_whatever_the_method(method):
    with pytest.raises(RecipeError, match="auto looks at samples: give the quantize step a calibration") as caught:
        load(recipe({"average_bits": 2.5, "method": method}, calibration=None))
    assert len(caught.value.problems) == 1


def test_a_plan_already_refuses_what_cannot_be_met():
    with pytest.raises(FormatError, match="less than their smallest choices take"):
        plan(recipe({"budget": "2KB"}), pico.PICO["llama"]())
    with pytest.raises(RequestError, match="'x' is not a size"):
        plan(recipe({"budget": "x"}), pico.PICO["llama"]())
    assert plan(recipe({"budget": "18KB"}), pico.PICO["llama"]())


@pytest.mark.parametrize("bits", [{"average_bits": 2.5}, {"budget": "18KB"}])
def test_a_whole_run_keeps_what_was_decided(tmp_path, bits):
    model = pico.PICO["llama"]()
    mote_quant.apply(recipe(bits), model, data=source_for(model), output=tmp_path)
    formats = [module.spec.format for module in model.modules() if isinstance(module, PackedLinear)]
    assert len(formats) == 24
    assert len(set(formats)) > 1
    again = load_model(tmp_path)
    assert [module.spec.format for module in again.modules() if isinstance(module, PackedLinear)] == formats
    torch.testing.assert_close(logits(again), logits(model))
