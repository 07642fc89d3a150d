from __future__ import annotations

import pytest
import torch

from mote_quant.formats import Codes
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.measure import Reference, output_error, weight_error
from mote_quant.steps.quantize.methods import rtn
from tests import pico
from tests.mixtures import CALIBRATION, TERNARY, quantize_it, upcycled

INT2 = IntegerBits(format="int2", scale_dtype="float32")


def test_errors_of_one_layer_are_relative_frobenius_norms():
    codes = Codes(torch.tensor([[1, -2], [0, 1]]), torch.ones(2, 1))
    packed = PackedLinear.pack(INT2, codes, None, torch.float32)
    weight = torch.tensor([[1.5, -2.0], [0.0, 1.0]])
    assert weight_error(weight, packed) == pytest.approx(0.5 / (1.5**2 + 4 + 1) ** 0.5)
    inputs = torch.tensor([[2.0, 0.0]])
    assert output_error(weight, packed, inputs) == pytest.approx(1 / 3)
    assert output_error(weight, packed, None) is None
    assert (
        weight_error(torch.zeros(2, 2), PackedLinear.pack(INT2, rtn(torch.zeros(2, 2), INT2), None, torch.float32)) == 0
    )


def batches_of(model, count: int = 2):
    made = [pico.inputs(model, batch=1, seed=seed) for seed in range(count)]
    return [{key: value for key, value in batch.items() if key != "labels"} for batch in made]


def test_the_distance_to_oneself_is_nothing_and_grows_with_noise():
    model = pico.PICO["llama"]()
    reference = Reference(model, batches_of(model))
    assert reference.positions == 18
    same = reference.distance(model)
    assert (same.kl, same.agreement) == (0.0, 1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    assert reference.distance(model).kl > 0.01


def test_padding_is_not_compared():
    model = pico.PICO["llama"]()
    batches = batches_of(model, 1)
    batches[0]["attention_mask"][0, 6:] = 0
    assert Reference(model, batches).positions == 6


@pytest.mark.parametrize("measure", ["roles", "model", "none"])
def test_roles_follow_one_another_and_the_last_is_the_whole(measure):
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY | {"shared": "int2", "attention": "int3", "head": "int8"})
    quantize_it(model, context, measure=measure, **CALIBRATION)
    if measure == "none":
        assert "outputs" not in context.notes
        return
    outputs = context.notes["outputs"]
    rows = outputs["roles"]
    if measure == "model":
        assert rows == []
    else:
        assert [row["role"] for row in rows] == list(
            dict.fromkeys(n["role"] for n in context.notes["modules"].values())
        )
        assert len(rows) == 3
        assert rows[0]["kl_before"] == 0.0
        assert [row["kl_before"] for row in rows[1:]] == [row["kl_after"] for row in rows[:-1]]
        assert rows[-1]["kl_after"] == outputs["kl"]
    assert outputs["kl"] > 0
    assert 0 <= outputs["agreement"] < 1
    assert all(isinstance(module, PackedLinear) for name, module in model.named_modules() if name.endswith("q_proj"))


def test_the_modules_report_is_complete():
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY | {"shared": {"format": "int4", "group_size": 16, "method": "gptq"}})
    quantize_it(model, context, **CALIBRATION)
    for note in context.notes["modules"].values():
        assert note["role"] == "shared"
        assert (note["method"], note["format"], note["tokens"]) == ("gptq", "int4", 72)
        assert note["bits"] == pytest.approx(5.0)  # 4 and a 16-bit scale for 16 columns
        assert 0 < note["output_error"] < note["weight_error"] < 0.2
        assert note["seconds"] >= 0
