"""Against gptqmodel itself, and against optimum, which drives it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mote_quant.data.calibration import calibration_batches
from mote_quant.errors import BadWeightsError, CalibrationError, FormatError
from mote_quant.formats.integer import BITS
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.backends import BACKENDS
from mote_quant.steps.quantize.methods import Seen, gptq
from tests import pico
from tests.backends.beside import (
    COLUMNS,
    EVERY_GRID,
    LEAKS,
    ROOT,
    ROWS,
    agreement,
    applied,
    check_reloads_without,
    dense,
    needs,
    problem,
    seen,
    still_dense,
)
from tests.mixtures import CALIBRATION, TERNARY, bits_of, logits, quantize_it, upcycled
from tests.sources import source_for

needs("gptqmodel", "gptq")

by_gptqmodel = BACKENDS["gptqmodel", "gptq"]
LINE = {"format": "int4", "group_size": 16, "method": "gptq", "backend": "gptqmodel"}


def spec_of(format: str, group_size: int, symmetric: bool, **more: Any) -> IntegerBits:
    values = {"format": format, "group_size": group_size, "symmetric": symmetric, "method": "gptq"}
    return IntegerBits.model_validate(values | {"backend": "gptqmodel"} | more)


def theirs(weight: Tensor, inputs: Tensor, spec: IntegerBits) -> tuple[Tensor, Any]:
    """gptqmodel on its own: inputs go in, the weight it rounded comes out, and the layer it packs."""
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.quantization import GPTQ, QuantizeConfig

    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    own = {"bits": BITS[spec.format], "group_size": spec.group_size, "sym": spec.symmetric, "desc_act": spec.act_order}
    static = spec.act_order and spec.group_size != -1
    task = GPTQ(linear, QuantizeConfig(**own, static_groups=static, act_group_aware=False, damp_percent=spec.damping))
    task.quantizer.configure(perchannel=True)
    task.add_batch(inputs, None)
    rounded, scale, zero, group_index, *_ = task.quantize()
    linear.weight = nn.Parameter(rounded.clone(), requires_grad=False)
    packed = TorchLinear(**own, in_features=columns, out_features=rows, bias=False)
    packed.pack_original(linear, scale.clone(), zero.clone(), group_index.clone())
    packed.post_init()
    return rounded, packed


@pytest.mark.parametrize(("format", "group_size", "symmetric"), EVERY_GRID)
@pytest.mark.parametrize("act_order", [True, False])
def test_what_we_store_is_what_it_found(format: str, group_size: int, symmetric: bool, act_order: bool) -> None:
    weight, inputs = problem()
    spec = spec_of(format, group_size, symmetric, act_order=act_order, scale_dtype="float32")
    rounded, _ = theirs(weight, inputs, spec)
    assert torch.equal(dense(by_gptqmodel(weight, spec, seen(inputs)), spec), rounded)


@pytest.mark.parametrize(("format", "group_size", "symmetric"), EVERY_GRID)
def test_what_we_store_is_what_it_packs(format: str, group_size: int, symmetric: bool) -> None:
    weight, inputs = problem()
    spec = spec_of(format, group_size, symmetric)
    _, packed = theirs(weight, inputs, spec)
    codes = by_gptqmodel(weight, spec, seen(inputs))
    assert torch.equal(codes.scale, packed.scales.t())
    # Its layer multiplies in float16.
    torch.testing.assert_close(dense(codes, spec), packed.dequantize_weight().t().float(), rtol=2**-10, atol=0.0)


@pytest.mark.parametrize("group_size", [48, 100])
def test_a_last_group_may_be_short(group_size: int) -> None:
    weight, inputs = problem()
    spec = spec_of("int4", group_size, False, scale_dtype="float32")
    codes = by_gptqmodel(weight, spec, seen(inputs))
    assert codes.scale.shape == (ROWS, -(-COLUMNS // group_size))
    assert agreement(codes, gptq(weight, spec, seen(inputs))) > 0.99


def test_optimum_finds_the_same_codes_in_a_dense_model() -> None:
    """Its quantizer on a whole model, stopped before it packs; and our recipe on the same batches."""
    from optimum.gptq import GPTQQuantizer

    found: dict[str, Any] = {}

    class Unpacked(GPTQQuantizer):
        def pack_model(self, model: nn.Module, quantizers: dict[str, Any]) -> None:
            found.update(quantizers)

        def post_init_model(self, model: nn.Module) -> nn.Module:
            return model

    names = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    model, reference = pico.PICO["llama"](), pico.PICO["llama"]()
    batches = calibration_batches(source_for(model), samples=16, batch_size=1, seed=0).batches
    for batch in batches:
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    Unpacked(
        **{"bits": 4, "group_size": 16, "damp_percent": 0.01, "desc_act": False, "act_group_aware": False},
        dataset=batches,
        block_name_to_quantize="model.layers",
        # Gate and up together, as in our pass: down sees what they put out before they are quantized.
        modules_in_block_to_quantize=[names],
    ).quantize_model(reference)

    context = still_dense(model, {"ffn": LINE | {"act_order": False, "scale_dtype": "float32"}})
    quantize_it(model, context, calibration={"data": "pico", "samples": 16, "batch_size": 1})
    shares = []
    for name, (_, scale, _, _) in found.items():
        packed, rounded = model.get_submodule(name), reference.get_submodule(name).weight
        shares.append(float((packed.dequantize() - rounded).abs().lt(1e-6).float().mean()))
        if ".0." in name:  # what comes later sees other sums of the same tokens, rounded otherwise
            torch.testing.assert_close(packed.packed.tensors["weight_scale"], scale)
    assert len(shares) == 6
    assert min(shares) > 0.98


def test_its_recipe_reloads_where_it_is_not_installed(tmp_path: Path) -> None:
    model, packed = applied("ptq-gptqmodel", "llama", tmp_path)
    assert len(packed) == 14
    assert {module.spec.backend for module in packed.values()} == {"gptqmodel"}
    check_reloads_without("gptqmodel,optimum", model, tmp_path)


@pytest.mark.parametrize("family", ["llama", "llava", "gpt2"])
def test_shared_experts_by_it_while_ternary_experts_stay(family: str, tmp_path: Path) -> None:
    bits = TERNARY | {"shared": LINE, "attention": "int8"}
    recipe = {"name": "mote", "bits": bits, "pipeline": [{"upcycle": {"experts": 3}}, {"quantize": CALIBRATION}]}
    model, packed = applied(recipe, family, tmp_path)
    shared = [name for name, module in packed.items() if module.spec.backend == "gptqmodel"]
    assert len(shared) == {"llama": 6, "llava": 6, "gpt2": 4}[family]
    assert all("shared_expert" in name for name in shared)
    check_reloads_without("gptqmodel,optimum", model, tmp_path)


def test_it_leaves_everything_else_alone() -> None:
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY | {"shared": LINE})
    experts = {name: module.codes().codes for name, module in model.named_modules() if isinstance(module, QatLinear)}
    floats = bits_of(
        {name: p for name, p in model.named_parameters() if ".mlp.e" not in name and ".shared_" not in name}
    )
    quantize_it(model, context, **CALIBRATION)
    assert len(experts) == 24
    for name, codes in experts.items():
        assert torch.equal(model.get_submodule(name).codes().to(codes.dtype), codes), name
    assert {"model.layers.0.mlp.gate.weight", "lm_head.weight"} < floats.keys()
    assert all(torch.equal(model.get_parameter(name), before) for name, before in floats.items())
    inner = [module for module in model.modules() if module is not model]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in inner)


def test_a_model_in_bfloat16() -> None:
    model = pico.PICO["llama"]().bfloat16()
    dense_logits = logits(model).float()
    context = still_dense(model, {"ffn": LINE | {"format": "int8"}})
    quantize_it(model, context, **CALIBRATION)
    off = (logits(model).float() - dense_logits).norm() / dense_logits.norm()
    assert 0 < off < 0.03


def test_bad_input_is_refused_by_name() -> None:
    weight, inputs = problem()
    spec = spec_of("int4", 32, True)
    hopeless = torch.eye(COLUMNS) - 30 * torch.ones(COLUMNS, COLUMNS).fill_diagonal_(0)
    with pytest.raises(CalibrationError, match=r"layer\.weight.*not positive definite"):
        by_gptqmodel(weight, spec, Seen(512, hopeless), name="layer.weight")
    with pytest.raises(CalibrationError, match=r"layer\.weight.*needs the Hessian"):
        by_gptqmodel(weight, spec, None, name="layer.weight")
    with pytest.raises(CalibrationError, match=r"layer\.weight.*NaN or infinite"):
        by_gptqmodel(weight, spec, Seen(512, torch.full_like(hopeless, torch.nan)), name="layer.weight")
    with pytest.raises(BadWeightsError, match=r"layer\.weight"):
        by_gptqmodel(weight.fill_(torch.nan), spec, seen(inputs), name="layer.weight")
    with pytest.raises(FormatError, match=r"layer\.weight: a scale of .* does not fit float16"):
        by_gptqmodel(problem()[0] * 1e8, spec, seen(inputs), name="layer.weight")


def test_arguments_are_left_alone_and_results_can_be_written_to() -> None:
    weight, inputs = problem()
    given = seen(inputs)
    kept = weight.clone(), given.hessian.clone()
    codes = by_gptqmodel(weight, spec_of("int4", 32, False, scale_dtype="float32"), given)
    assert torch.equal(weight, kept[0])
    assert torch.equal(given.hessian, kept[1])
    assert not any(tensor.is_inference() for tensor in (codes.codes, codes.scale, codes.zero))


def test_the_process_is_as_it_was() -> None:
    """gptqmodel comes with a banner, a root logger of its own and another cache folder for the hub."""
    command = [sys.executable, "-c", LEAKS.format("gptqmodel")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    assert "GPT-QModel" not in ran.stderr
