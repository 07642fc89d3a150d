"""Group integers (and ternary and binary codes) times float inputs: every level of the CPU kernels against float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mote_quant.errors import FormatError, KernelError
from mote_quant.formats import Codes, format_for
from mote_quant.formats.floating import dtype_of
from mote_quant.formats.groups import count_groups
from mote_quant.formats.integer import BITS, INPUT_SCALE, code_range
from mote_quant.kernels import reference
from mote_quant.kernels.cpu import integer, library
from mote_quant.kernels.weight import PackedWeight
from mote_quant.recipe.schema import BinaryBits, IntegerBits, TernaryBits

pytestmark = pytest.mark.skipif(library.library() is None, reason="the CPU kernels are not built")
LEVELS = [level.name for level in library.levels()]
TYPES = [torch.float32, torch.bfloat16, torch.float16]
HALF_A_STEP = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
"""The largest relative error of one rounding."""

group_sizes = st.sampled_from([-1, 8, 16, 24, 32, 64, 128, 5])
integers = st.builds(
    IntegerBits,
    format=st.sampled_from(sorted(BITS)),
    group_size=group_sizes,
    symmetric=st.booleans(),
    scale_dtype=st.sampled_from(["float16", "bfloat16", "float32"]),
    method=st.sampled_from(["rtn", "hqq", "awq"]),
)


@st.composite
def scaled(draw):
    """Ternary or binary codes for a float input."""
    kind, name = draw(st.sampled_from([(TernaryBits, "ternary"), (BinaryBits, "binary")]))
    granularity = draw(st.sampled_from(["tensor", "channel", "group"]))
    groups = {"group_size": draw(st.sampled_from([8, 32, 128]))} if granularity == "group" else {}
    dtype = draw(st.sampled_from(["float16", "float32"]))
    return kind(format=name, granularity=granularity, activations="none", scale_dtype=dtype, **groups)


specs = st.one_of(integers, scaled())


@pytest.fixture(params=LEVELS)
def level(request):
    before = library.level()
    library.set_level(library.Level[request.param])
    yield request.param
    library.set_level(before)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def packed(spec, rows: int, columns: int, seed: int = 0) -> PackedWeight:
    generator = torch.Generator().manual_seed(seed)
    form = format_for(spec)
    scale_spec = form.layout((rows, columns))["weight_scale"]
    scale = (torch.rand(scale_spec.shape, generator=generator) * 0.02 + 0.001).to(scale_spec.dtype)
    if not isinstance(spec, IntegerBits):
        codes = torch.randint(-1, 2, (rows, columns), generator=generator, dtype=torch.int8)
        codes = codes.abs() * 2 - 1 if spec.format == "binary" else codes
        return PackedWeight(form.compress(Codes(codes, scale)), (rows, columns), form)
    low, high = code_range(spec)
    codes = torch.randint(low, high + 1, (rows, columns), generator=generator)
    groups = (rows, count_groups(spec.group_size, columns))
    zero = None if spec.symmetric else torch.randint(high + 1, groups, generator=generator)
    if zero is not None and spec.float_zeros:
        zero = (zero + torch.rand(groups, generator=generator)).to(scale.dtype)
    factors = torch.rand(columns, generator=generator) + 0.5
    companions = {INPUT_SCALE: factors.to(dtype_of(spec.scale_dtype))} if spec.scales_inputs else {}
    return PackedWeight(form.compress(Codes(codes, scale, zero, companions)), (rows, columns), form)


def example(tokens: int, columns: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).to(dtype)


def check(y: Tensor, x: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> None:
    """One rounding to the type of x, and float32 sums, away from the product in float64."""
    dense = weight.format.decompress(weight.tensors, weight.shape, torch.float32).double()
    exact = torch.nn.functional.linear(x.double(), dense, None if bias is None else bias.double())
    zero = weight.tensors.get("weight_zero")
    # What cancels between codes and zero points counts too.
    spread = dense.abs() + (0 if zero is None else 2 ** (BITS[weight.format.spec.format] - 1) * 0.03)
    tolerance = 2e-6 * (x.double().abs() @ spread.T) + 1.01 * HALF_A_STEP[x.dtype] * exact.abs() + 1e-6
    assert y.dtype == x.dtype
    assert y.shape == exact.shape
    assert bool(((y.double() - exact).abs() <= tolerance).all())


@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=40)
@given(
    spec=specs,
    rows=st.integers(1, 21),
    columns=st.integers(1, 400),
    tokens=st.integers(0, integer.FEW_TOKENS),
    bias=st.booleans(),
)
def test_products_are_exact_to_float32_rounding(dtype, spec, rows, columns, tokens, bias):
    weight = packed(spec, rows, columns)
    x = example(min(tokens, integer.few_tokens(weight.format)), columns, dtype)
    offsets = example(1, rows, dtype)[0] if bias else None
    before = library.level()
    try:
        for name in LEVELS:
            library.set_level(library.Level[name])
            check(integer.matmul(x, weight, offsets), x, weight, offsets)
    finally:
        library.set_level(before)


@settings(max_examples=60)
@given(
    spec=specs,
    rows=st.integers(1, 9),
    columns=st.integers(1, 200),
    dtype=st.sampled_from(TYPES),
    data=st.data(),
)
def test_unpacked_rows_are_the_reference_to_the_bit(spec, rows, columns, dtype, data):
    weight = packed(spec, rows, columns)
    begin = data.draw(st.integers(0, rows))
    end = data.draw(st.integers(begin, rows))
    before = library.level()
    try:
        for name in LEVELS:
            library.set_level(library.Level[name])
            expected = weight.format.decompress(weight.tensors, weight.shape, dtype)[begin:end]
            assert torch.equal(integer.dequantize(weight, begin, end, dtype), expected)
    finally:
        library.set_level(before)


@pytest.mark.parametrize("name", sorted(BITS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_rows_and_small_groups(level, name, dtype):
    spec = IntegerBits(format=name, group_size=16, symmetric=False)
    weight, x = packed(spec, 6, 5000), example(3, 5000, dtype)
    check(integer.matmul(x, weight, None), x, weight)


@pytest.mark.parametrize("dtype", TYPES)
def test_many_tokens_are_unpacked_some_rows_at_a_time(level, dtype, monkeypatch):
    monkeypatch.setattr(integer, "UNPACKED_BYTES", 1024)
    weight = packed(IntegerBits(format="int4", group_size=32, symmetric=False), 53, 96)
    x, bias = example(integer.FEW_TOKENS + 1, 96, dtype), example(1, 53, dtype)[0]
    expected = reference.matmul(x, weight, bias)
    assert torch.allclose(integer.matmul(x, weight, bias), expected, rtol=4 * HALF_A_STEP[dtype], atol=0.05)
    few, many = integer.matmul(x[:2], weight, bias), integer.matmul(x, weight, bias)[:2]
    assert torch.allclose(few.float(), many.float(), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", ["int8", "int4", "int3"])
@pytest.mark.parametrize("tokens", [1, 7])
def test_thread_counts_do_not_change_a_bit(level, threads, name, tokens):
    weight = packed(IntegerBits(format=name, group_size=64, symmetric=False), 701, 1024)
    x = example(tokens, 1024, torch.bfloat16)
    products: list[Tensor] = []
    unpacked: list[Tensor] = []
    for count in (1, 2, 3):
        threads(count)
        products.append(integer.matmul(x, weight, None))
        unpacked.append(integer.dequantize(weight, 0, 701, x.dtype))
    for made in (products, unpacked):
        assert torch.equal(made[0], made[1])
        assert torch.equal(made[0], made[2])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tokens", [2, 80])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_not_finite_never_becomes_a_number(level, value, tokens, dtype):
    weight, x = packed(IntegerBits(format="int4", group_size=32, symmetric=False), 9, 70), example(tokens, 70, dtype)
    clean = integer.matmul(x, weight, None)
    x[1, 69] = value
    y = integer.matmul(x, weight, None)
    assert not bool(y[1].isfinite().any())
    assert torch.equal(y[0], clean[0])
    assert bool(y[0].isfinite().all())
    damaged = packed(IntegerBits(format="int8", group_size=32), 9, 70)
    damaged.tensors["weight_scale"][3, 2] = value
    y = integer.matmul(example(tokens, 70, dtype), damaged, None)
    assert not bool(y[:, 3].isfinite().any())
    assert bool(y[:, :3].isfinite().all() & y[:, 4:].isfinite().all())


@pytest.mark.parametrize(("rows", "columns", "tokens"), [(5, 0, 3), (0, 16, 3), (5, 16, 0)])
def test_nothing_times_something(level, rows, columns, tokens):
    weight = packed(IntegerBits(format="int4", group_size=-1), rows, columns)
    bias = torch.arange(rows).float()
    assert torch.equal(integer.matmul(torch.ones(tokens, columns), weight, bias)[:, :0], torch.ones(tokens, 0))
    assert columns or torch.equal(integer.matmul(torch.ones(tokens, columns), weight, bias), bias.expand(tokens, rows))


def test_inputs_of_any_stride_and_alignment(level):
    weight = packed(IntegerBits(format="int3", group_size=32), 6, 100)
    odd = {name: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape) for name, t in weight.tensors.items()}
    x = example(4, 300, torch.bfloat16)
    for piece in (x[:, 1:101], x[:, ::3], x.t()[:100].t(), x[:, :100].unflatten(0, (2, 2))):
        y = integer.matmul(piece, PackedWeight(odd, weight.shape, weight.format), None)
        assert torch.equal(y, integer.matmul(piece.clone().contiguous(), weight, None))
        assert y.shape == (*piece.shape[:-1], 6)


def test_only_what_the_kernels_know_is_supported():
    weight, x = packed(IntegerBits(format="int4"), 3, 8), torch.ones(1, 8)
    assert integer.supports(x, weight)
    assert not integer.supports(x.double(), weight)
    assert not integer.supports(x.to("meta"), weight)
    assert not integer.supports(x.clone().requires_grad_(), weight)
    base3 = TernaryBits(format="ternary", packing="base3")
    assert not integer.supports(x, packed(base3, 3, 8))


def test_what_does_not_fit_is_refused():
    weight = packed(IntegerBits(format="int4"), 3, 8)
    with pytest.raises(KernelError, match="7 columns"):
        integer.matmul(torch.ones(2, 7), weight, None)
    shorter = {**weight.tensors, "weight": weight.tensors["weight"][:, :2]}
    with pytest.raises(FormatError, match="weight must be"):
        integer.matmul(torch.ones(2, 8), PackedWeight(shorter, weight.shape, weight.format), None)
    with pytest.raises(KernelError, match="does not take"):
        integer.dequantize(weight, 2, 5, torch.float32)


def test_calls_are_counted():
    weight = packed(IntegerBits(format="int4"), 3, 8)
    before = library.calls()["int_matmul"]
    integer.matmul(torch.ones(2, 8), weight, None)
    assert library.calls()["int_matmul"] == before + 1
