from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mote_quant.errors import FormatError
from mote_quant.formats import Codes, format_for
from mote_quant.formats.floating import dtype_of
from mote_quant.formats.groups import count_groups
from mote_quant.formats.integer import code_range
from mote_quant.kernels import PackedLinear
from mote_quant.kernels.table import OPS, implementations
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import IntegerBits, TernaryBits
from mote_quant.ternary.activation import fake_quantize_activations
from tests.rounding import assert_same_to_rounding

integers = st.builds(
    IntegerBits,
    format=st.sampled_from(["int8", "int4", "int3", "int2"]),
    group_size=st.sampled_from([-1, 4, 7]),
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
)


def ternary_specs(**more: Any) -> st.SearchStrategy[TernaryBits]:
    return st.builds(
        TernaryBits,
        format=st.just("ternary"),
        packing=st.sampled_from(["2bit", "base3"]),
        activations=st.sampled_from(["int8", "none"]),
        scale_dtype=st.sampled_from(["float16", "float32"]),
        **more,
    )


ternaries = st.one_of(
    ternary_specs(granularity=st.sampled_from(["tensor", "channel"])),
    ternary_specs(granularity=st.just("group"), group_size=st.sampled_from([8, 16])),
)
specs = st.one_of(integers, ternaries)
sizes = st.integers(1, 20)

INT4 = IntegerBits(format="int4", group_size=4, symmetric=False)
TERNARY = TernaryBits(format="ternary", scale_dtype="float16")


def packed(
    spec: IntegerBits | TernaryBits, out: int = 6, into: int = 9, bias: bool = True, dtype=torch.float32
) -> PackedLinear:
    generator = torch.Generator().manual_seed(out * 100 + into)
    offsets = torch.randn(out, generator=generator) if bias else None
    if isinstance(spec, TernaryBits):
        linear = trained(spec, out, into)
        return PackedLinear.pack(spec, linear.codes(), offsets, dtype)
    low, high = code_range(spec)
    groups = count_groups(spec.group_size, into)
    codes = torch.randint(low, high + 1, (out, into), generator=generator)
    scale = torch.rand(out, groups, generator=generator).to(dtype_of(spec.scale_dtype))
    zero = None if spec.symmetric else torch.randint(high + 1, (out, groups), generator=generator)
    return PackedLinear.pack(spec, Codes(codes, scale, zero), offsets, dtype)


def trained(spec: TernaryBits, out: int, into: int, dtype=torch.float32) -> QatLinear:
    linear = QatLinear(into, out, spec, bias=True, dtype=dtype)
    generator = torch.Generator().manual_seed(out * 100 + into)
    for parameter in linear.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(dtype)
    return linear


def example_input(into: int, dtype=torch.float32) -> Tensor:
    return torch.randn(2, 3, into, generator=torch.Generator().manual_seed(into)).to(dtype)


@given(spec=specs, out=sizes, into=sizes, bias=st.booleans())
def test_buffers_are_the_layout_to_the_byte(spec, out, into, bias):
    layer = packed(spec, out, into, bias)
    layout = format_for(spec).layout((out, into))
    state = layer.state_dict()
    assert set(state) == set(layout) | ({"bias"} if bias else set())
    assert sum(state[name].nbytes for name in layout) == sum(part.nbytes for part in layout.values())
    assert [name for name, _ in layer.named_parameters()] == (["bias"] if bias else [])


@given(spec=specs, out=sizes, into=sizes, bias=st.booleans(), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_reload_into_an_empty_layer_gives_the_same_bits(spec, out, into, bias, dtype):
    layer = packed(spec, out, into, bias, dtype)
    reloaded = PackedLinear.empty(spec, into, out, bias, dtype)
    reloaded.load_state_dict(layer.state_dict())
    x = example_input(into, dtype)
    assert layer(x).dtype == dtype
    assert torch.equal(reloaded(x), layer(x))
    assert torch.equal(reloaded.codes(), layer.codes())


@given(spec=specs, out=sizes, into=sizes, bias=st.booleans())
def test_forward_is_a_linear_with_the_dequantized_weight(spec, out, into, bias):
    layer = packed(spec, out, into, bias)
    x = example_input(into)
    seen = fake_quantize_activations(x) if getattr(spec, "activations", "none") == "int8" else x
    assert_same_to_rounding(layer(x), F.linear(seen, layer.dequantize(), layer.bias))


@given(spec=ternaries, out=sizes, into=sizes, dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_packed_forward_is_the_trained_forward_to_rounding(spec, out, into, dtype):
    latent = trained(spec, out, into, dtype)
    layer = PackedLinear.pack(spec, latent.codes(), latent.bias, dtype)
    x = example_input(into, dtype)
    assert_same_to_rounding(layer(x), latent(x))


@pytest.mark.parametrize("spec", [INT4, TERNARY], ids=["int4", "ternary"])
def test_an_empty_layer_on_meta_holds_no_bytes_and_knows_its_layout(spec):
    layer = PackedLinear.empty(spec, 9, 6, bias=True, dtype=torch.bfloat16, device="meta")
    assert all(tensor.is_meta for tensor in layer.state_dict().values())
    assert layer(torch.empty(2, 9, dtype=torch.bfloat16, device="meta")).shape == (2, 6)
    layer = layer.to_empty(device="cpu")
    layer.load_state_dict(packed(spec, dtype=torch.bfloat16).state_dict())
    x = example_input(9, torch.bfloat16)
    assert torch.equal(layer(x), packed(spec, dtype=torch.bfloat16)(x))


@pytest.mark.parametrize("spec", [INT4, TERNARY, IntegerBits(format="int3", scale_dtype="float32")])
@pytest.mark.parametrize(
    "cast",
    [lambda m: m.to(torch.bfloat16), nn.Module.half, nn.Module.double, lambda m: m.type(torch.bfloat16)],
    ids=["to", "half", "double", "type"],
)
def test_casts_move_the_bias_and_leave_scales_and_codes_alone(spec, cast):
    layer = packed(spec)
    before = copy.deepcopy(layer.state_dict())
    cast(nn.Sequential(layer))
    assert layer.bias.dtype == layer.dtype != torch.float32
    assert layer.dequantize().dtype == layer.dtype
    after = layer.state_dict()
    for name in before.keys() - {"bias"}:
        assert after[name].dtype == before[name].dtype
        assert torch.equal(after[name], before[name])


def test_input_type_decides_the_type_of_the_product():
    layer = packed(INT4, dtype=torch.float32)
    assert layer(example_input(9, torch.bfloat16)).dtype == torch.bfloat16
    assert layer(example_input(9, torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("spec", [INT4, TERNARY], ids=["int4", "ternary"])
def test_no_tokens_give_no_rows(spec):
    assert packed(spec)(torch.zeros(0, 9)).shape == (0, 6)


@pytest.mark.parametrize("spec", [INT4, TERNARY], ids=["int4", "ternary"])
def test_gradients_flow_to_the_input_and_not_to_the_layer(spec):
    layer = packed(spec)
    x = example_input(9).requires_grad_()
    layer(x).sum().backward()
    assert torch.allclose(x.grad, layer.dequantize().sum(0).expand_as(x), atol=1e-5)
    assert layer.bias.grad is None


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_input_that_is_not_floating_point_is_refused(dtype):
    with pytest.raises(FormatError, match=f"floating-point input, found {dtype}"):
        packed(INT4)(torch.zeros(2, 9, dtype=dtype))


def test_codes_that_do_not_fit_the_spec_are_refused():
    with pytest.raises(FormatError, match="between 0 and 15"):
        PackedLinear.pack(
            INT4, Codes(torch.full((2, 4), 16), torch.ones(2, 1).half(), torch.zeros(2, 1)), None, torch.float32
        )


def test_damaged_bytes_are_found():
    layer = packed(TERNARY)
    layer.weight.fill_(255)
    with pytest.raises(FormatError, match="digit 3"):
        layer.codes()


def test_the_layer_says_what_it_is():
    assert "in_features=9, out_features=6, bias=True, format=int4" in repr(packed(INT4))


def test_every_op_ends_with_the_torch_reference():
    assert {choices[-1].name for choices in OPS.values()} == {"torch"}
    assert set(implementations()) == set(OPS)
