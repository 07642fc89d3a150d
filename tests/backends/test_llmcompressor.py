"""Against llm-compressor itself: its modifiers, and its `oneshot` on a whole model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from mote_quant.data.calibration import calibration_batches
from mote_quant.data.stdlib_text.processor import build_processor
from mote_quant.errors import BadWeightsError, CalibrationError, FormatError
from mote_quant.formats import Codes
from mote_quant.formats.groups import split_groups
from mote_quant.formats.integer import BITS
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import IntegerBits
from mote_quant.steps.quantize.backends import BACKENDS
from mote_quant.steps.quantize.methods import Seen, gptq, rtn
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
from tests.mixtures import CALIBRATION, TERNARY, logits, quantize_it, upcycled
from tests.sources import source_for

needs("llmcompressor", "llmcompressor")

THEIRS = {method: BACKENDS["llmcompressor", method] for method in ("rtn", "gptq")}
LINE = {"format": "int4", "group_size": 16, "method": "gptq", "backend": "llmcompressor"}


def spec_of(format: str, group_size: int, symmetric: bool, method: str = "gptq", **more: Any) -> IntegerBits:
    values = {"format": format, "group_size": group_size, "symmetric": symmetric, "method": method}
    return IntegerBits.model_validate(values | {"backend": "llmcompressor"} | more)


def modifier(spec: IntegerBits, targets: list[str]) -> Any:
    """The line of a recipe, as its users write it."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    rows = spec.group_size == -1
    size = {"strategy": "channel"} if rows else {"strategy": "group", "group_size": spec.group_size}
    args = QuantizationArgs(num_bits=BITS[spec.format], type="int", symmetric=spec.symmetric, **size)
    groups = {"all": QuantizationScheme(targets=targets, weights=args)}
    if spec.method == "rtn":
        return QuantizationModifier(config_groups=groups)
    order = "static" if spec.act_order else None
    return GPTQModifier(config_groups=groups, dampening_frac=spec.damping, actorder=order)


def theirs(weight: Tensor, inputs: Tensor, spec: IntegerBits) -> tuple[nn.Linear, Tensor | None]:
    """A linear layer after the modifier, and the Hessian that it gathered itself."""
    from llmcompressor.core import LifecycleCallbacks, create_session
    from loguru import logger

    logger.disable("llmcompressor")
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    recipe, hessian = modifier(spec, ["Linear"]), None
    model = nn.Sequential(linear)
    with create_session() as session:
        session.initialize(model=model, recipe=[recipe], start=-1)
        LifecycleCallbacks.calibration_start()
        if spec.method == "gptq":
            model(inputs)
            hessian = recipe._hessians[linear].clone() / recipe._num_samples[linear]
        LifecycleCallbacks.sequential_epoch_end(list(model.modules()))
        LifecycleCallbacks.calibration_end()
        session.finalize()
    return linear, hessian


def values_of(linear: nn.Linear, spec: IntegerBits) -> Tensor:
    """The weight that the layer stands for, from its own scales and zero points."""
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    return fake_quantize(
        linear.weight, linear.weight_scale, linear.weight_zero_point, linear.quantization_scheme.weights
    )


@pytest.mark.parametrize(("format", "group_size", "symmetric"), EVERY_GRID)
@pytest.mark.parametrize("act_order", [True, False])
def test_what_we_store_is_what_gptq_found(format: str, group_size: int, symmetric: bool, act_order: bool) -> None:
    weight, inputs = problem()
    spec = spec_of(format, group_size, symmetric, act_order=act_order, scale_dtype="float32")
    linear, hessian = theirs(weight, inputs, spec)
    codes = THEIRS["gptq"](weight, spec, Seen(len(inputs), hessian))
    assert torch.equal(codes.scale, linear.weight_scale)
    assert torch.equal(dense(codes, spec), linear.weight)


@pytest.mark.parametrize(("format", "group_size", "symmetric"), EVERY_GRID)
def test_what_we_store_is_what_rounding_found(format: str, group_size: int, symmetric: bool) -> None:
    weight, inputs = problem()
    spec = spec_of(format, group_size, symmetric, method="rtn", scale_dtype="float32")
    linear, _ = theirs(weight, inputs, spec)
    codes = THEIRS["rtn"](weight, spec)
    assert torch.equal(dense(codes, spec), values_of(linear, spec))
    own = rtn(weight, spec)
    assert agreement(codes, own) == 1.0
    torch.testing.assert_close(codes.scale, own.scale)


def test_its_hessian_and_ours_lead_to_the_same_codes() -> None:
    weight, inputs = problem()
    spec = spec_of("int3", 32, False, scale_dtype="float32")
    _, hessian = theirs(weight, inputs, spec)
    from_ours, from_theirs = (THEIRS["gptq"](weight, spec, given) for given in (seen(inputs), Seen(512, hessian)))
    assert agreement(from_ours, from_theirs) > 0.99


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("group_size", [48, 100])
def test_a_last_group_may_be_short(method: str, group_size: int) -> None:
    weight, inputs = problem()
    spec = spec_of("int4", group_size, False, method=method, scale_dtype="float32")
    own: Codes = {"rtn": rtn, "gptq": gptq}[method](weight, spec, seen(inputs))
    codes = THEIRS[method](weight, spec, seen(inputs))
    assert codes.scale.shape == (ROWS, -(-COLUMNS // group_size))
    assert agreement(codes, own) > 0.99
    assert split_groups(dense(codes, spec), group_size).shape[-1] == group_size


def test_oneshot_finds_the_same_codes_in_a_dense_model(tmp_path: Path) -> None:
    """It asks for a model that lies in a folder, and for a tokenizer that it does not use."""
    from llmcompressor import oneshot

    pico.PICO["llama"]().save_pretrained(tmp_path / "dense")
    model = pico.PICO["llama"]()
    reference = type(model).from_pretrained(tmp_path / "dense")
    batches = calibration_batches(source_for(model), samples=16, batch_size=1, seed=0).batches
    spec = spec_of("int4", 16, True, scale_dtype="float32")
    oneshot(
        model=reference,
        processor=build_processor(),
        recipe=[modifier(spec, [r"re:.*\.mlp\..*_proj$"])],
        dataset=DataLoader(batches, batch_size=None),
        pipeline="sequential",
    )
    context = still_dense(model, {"ffn": LINE | {"scale_dtype": "float32"}})
    names = list(context.formats)
    quantize_it(model, context, calibration={"data": "pico", "samples": 16, "batch_size": 1})
    assert len(names) == 6
    for name in names:
        packed, rounded = model.get_submodule(name), reference.get_submodule(name).weight
        assert packed.spec.backend == "llmcompressor"
        assert (packed.dequantize() - rounded).abs().lt(1e-6).float().mean() > 0.98, name


def test_its_recipe_reloads_where_it_is_not_installed(tmp_path: Path) -> None:
    model, packed = applied("ptq-llmcompressor", "llava", tmp_path)
    assert {module.spec.format for module in packed.values()} == {"int4", "int8"}
    assert {module.spec.backend for module in packed.values()} == {"llmcompressor"}
    assert not any("vision" in name or "projector" in name for name in packed)
    check_reloads_without("llmcompressor,compressed_tensors", model, tmp_path)


@pytest.mark.parametrize("family", ["llama", "llava", "gpt2"])
def test_shared_experts_by_it_while_ternary_experts_stay(family: str, tmp_path: Path) -> None:
    bits = TERNARY | {"shared": LINE, "attention": {"format": "int8", "backend": "llmcompressor"}}
    recipe = {"name": "mote", "bits": bits, "pipeline": [{"upcycle": {"experts": 3}}, {"quantize": CALIBRATION}]}
    model, packed = applied(recipe, family, tmp_path)
    assert {module.spec.backend for module in packed.values()} == {"llmcompressor"}
    shared = [name for name in packed if "shared_expert" in name]
    assert len(shared) == {"llama": 6, "llava": 6, "gpt2": 4}[family]
    check_reloads_without("llmcompressor,compressed_tensors", model, tmp_path)


def test_it_leaves_no_hooks_and_no_attributes() -> None:
    model = pico.PICO["llama"]()
    context = upcycled(model, TERNARY | {"shared": LINE})
    experts = {name: module.codes().codes for name, module in model.named_modules() if isinstance(module, QatLinear)}
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    quantize_it(model, context, **CALIBRATION)
    for name, module in model.named_modules():
        # The model itself has ours, which watches its losses.
        assert not module._forward_hooks or module is model, name
        assert not module._forward_pre_hooks, name
        assert not {key for key in vars(module) if key.startswith(("quantization", "weight_observer"))}, name
        if name not in experts and "shared_expert" not in name:
            assert set(vars(module)) <= before[name] | {"hf_quantizer", "quantization_method"}, name
    for name, codes in experts.items():
        assert torch.equal(model.get_submodule(name).codes().to(codes.dtype), codes), name


def test_a_model_in_bfloat16() -> None:
    model = pico.PICO["llama"]().bfloat16()
    before = logits(model).float()
    quantize_it(model, still_dense(model, {"ffn": LINE | {"format": "int8"}}), **CALIBRATION)
    assert 0 < (logits(model).float() - before).norm() / before.norm() < 0.03


def test_bad_input_is_refused_by_name() -> None:
    weight, inputs = problem()
    spec = spec_of("int4", 32, True)
    hopeless = torch.eye(COLUMNS) - 30 * torch.ones(COLUMNS, COLUMNS).fill_diagonal_(0)
    with pytest.raises(CalibrationError, match=r"layer\.weight.*not positive definite"):
        THEIRS["gptq"](weight, spec, Seen(512, hopeless), name="layer.weight")
    with pytest.raises(CalibrationError, match=r"layer\.weight.*needs the Hessian"):
        THEIRS["gptq"](weight, spec, None, name="layer.weight")
    with pytest.raises(CalibrationError, match=r"layer\.weight.*NaN or infinite"):
        THEIRS["gptq"](weight, spec, Seen(512, torch.full_like(hopeless, torch.nan)), name="layer.weight")
    for method in THEIRS.values():
        with pytest.raises(BadWeightsError, match=r"layer\.weight"):
            method(torch.full_like(weight, torch.nan), spec, seen(inputs), name="layer.weight")
        with pytest.raises(FormatError, match=r"layer\.weight: a scale of .* does not fit float16"):
            method(weight * 1e8, spec, seen(inputs), name="layer.weight")


def test_arguments_are_left_alone() -> None:
    weight, inputs = problem()
    given = seen(inputs)
    kept = weight.clone(), given.hessian.clone()
    THEIRS["gptq"](weight, spec_of("int4", 32, False), given)
    assert torch.equal(weight, kept[0])
    assert torch.equal(given.hessian, kept[1])


def test_the_process_is_as_it_was() -> None:
    """llm-compressor logs to standard output, where our own results go."""
    command = [sys.executable, "-c", LEAKS.format("llmcompressor")]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""
    assert "it/s" not in ran.stderr
