"""The packed-ternary CPU kernels: integers exact at every level, outputs those of the torch reference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mote_quant.errors import FormatError, KernelError
from mote_quant.formats.base import Codes
from mote_quant.formats.registry import format_for
from mote_quant.kernels import experts as routed
from mote_quant.kernels.cpu import library, ternary
from mote_quant.kernels.experts import PackedExperts
from mote_quant.kernels.reference import matmul as reference_matmul
from mote_quant.kernels.weight import PackedWeight
from mote_quant.recipe.schema import TernaryBits
from mote_quant.ternary import packing

if library.library() is None:
    pytest.skip(f"no CPU kernels: {library.why_not()}", allow_module_level=True)

PACK = {"2bit": packing.pack_2bit, "base3": packing.pack_base3}
LEVELS = library.levels()
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RELATIVE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}
each_level = pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
each_packing = pytest.mark.parametrize("packed", list(PACK))
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    level, threads = library.level(), torch.get_num_threads()
    yield
    assert level is not None
    library.set_level(level)
    torch.set_num_threads(threads)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_codes(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(-1, 2, (rows, columns), generator=generator(seed), dtype=torch.int8)


def random_activations(tokens: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randint(-127, 128, (tokens, columns), generator=generator(seed), dtype=torch.int8)


def quantized(x: Tensor) -> tuple[Tensor, Tensor]:
    """As `ternary.activation` defines it, in plain torch."""
    scales = x.float().abs().amax(dim=-1, keepdim=True).clamp_min(1e-5) / 127
    return (x.float() / scales).round().clamp(-127, 127), scales


def spec_of(packed: str, **others: str) -> TernaryBits:
    return TernaryBits(format="ternary", packing=packed, **others)  # type: ignore[arg-type]


def weight_of(spec: TernaryBits, rows: int, columns: int, seed: int = 0) -> PackedWeight:
    form = format_for(spec)
    per_row = spec.granularity == "channel"
    scale = torch.rand((rows, 1) if per_row else (1,), generator=generator(seed)) * 0.1 + 0.01
    codes = Codes(random_codes(rows, columns, seed), scale.to(getattr(torch, spec.scale_dtype)))
    return PackedWeight(form.compress(codes), (rows, columns), form)


def agree(found: Tensor, expected: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Equal to rounding, measured against the largest value of a token."""
    largest = expected.abs().amax(dim=-1, keepdim=True).clamp_min(1e-20).float()
    worst = ((found.float() - expected.float()).abs() / largest).max() if expected.numel() else torch.zeros(())
    assert found.dtype == dtype
    assert float(worst) < RELATIVE[dtype]


interesting = st.sampled_from([1, 3, 4, 5, 63, 64, 65, 255, 256, 257, 319, 320, 321, 639, 641, 1025])


@given(
    rows=st.integers(0, 70) | st.sampled_from([128, 129]),
    columns=st.integers(1, 400) | interesting,
    tokens=st.integers(0, 70) | st.sampled_from([95, 96, 97, 200]),
    packed=st.sampled_from(list(PACK)),
    threads=st.sampled_from([1, 2]),
    seed=st.integers(0, 999),
)
@settings(max_examples=150, deadline=None)
def test_integers_are_exact_at_every_level(rows, columns, tokens, packed, threads, seed):
    codes, x = random_codes(rows, columns, seed), random_activations(tokens, columns, seed)
    expected = x.long() @ codes.long().T
    torch.set_num_threads(threads)
    for level in LEVELS:
        library.set_level(level)
        assert torch.equal(ternary.accumulate(x, PACK[packed](codes), packed, rows).long(), expected), level


@each_level
@each_packing
@pytest.mark.parametrize(("code", "activation"), list(product([-1, 1], [-127, 127])))
@pytest.mark.parametrize("tokens", [1, 9])
def test_the_largest_sums_do_not_overflow(level, packed, code, activation, tokens):
    library.set_level(level)
    codes = torch.full((5, 33_333), code, dtype=torch.int8)
    x = torch.full((tokens, 33_333), activation, dtype=torch.int8)
    assert ternary.accumulate(x, PACK[packed](codes), packed, 5).unique().tolist() == [33_333 * code * activation]


@each_level
@pytest.mark.parametrize("packed", ["2bit", "base3"])
def test_every_byte_is_read_as_unpacking_reads_it(level, packed):
    library.set_level(level)
    per_byte, unpack = (4, packing.unpack_2bit) if packed == "2bit" else (5, packing.unpack_base3)
    stored = torch.arange(256, dtype=torch.uint8).view(256, 1)
    for tokens in (1, 4, 20):
        x = random_activations(tokens, per_byte, tokens)
        expected = x.long() @ unpack(stored, per_byte).long().T
        assert torch.equal(ternary.accumulate(x, stored, packed, 256).long(), expected)


@each_level
@each_dtype
def test_activations_are_quantized_as_in_training(level, dtype):
    library.set_level(level)
    for columns in (1, 5, 64, 255, 256, 1000):
        x = (torch.randn(40, columns, generator=generator(columns)) * torch.logspace(-8, 4, 40).unsqueeze(1)).to(dtype)
        x[3] = 0
        codes, scales = ternary.quantize(x)
        expected, expected_scales = quantized(x)
        assert torch.equal(codes.float(), expected)
        assert torch.equal(scales, expected_scales)


@each_level
def test_halves_are_rounded_to_even(level):
    library.set_level(level)
    x = torch.cat([torch.tensor([127.0]), torch.arange(-63, 64) + 0.5]).unsqueeze(0)
    assert torch.equal(ternary.quantize(x)[0].float(), x.round())


@each_level
@each_packing
@each_dtype
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("scale_dtype", ["float32", "float16"])
def test_outputs_are_those_of_the_fake_quantized_forward(level, packed, dtype, granularity, scale_dtype):
    library.set_level(level)
    weight = weight_of(spec_of(packed, granularity=granularity, scale_dtype=scale_dtype), 67, 333)
    for tokens in (1, 2, 5, 33, 130):
        x = torch.randn(tokens, 333, generator=generator(tokens)).to(dtype)
        bias = torch.randn(67, generator=generator(1)).to(dtype)
        assert ternary.supports(x, weight)
        agree(ternary.matmul(x, weight, None), reference_matmul(x, weight, None), dtype)
        agree(ternary.matmul(x, weight, bias), reference_matmul(x, weight, bias), dtype)


@each_packing
def test_leading_dimensions_strides_and_offsets(packed):
    weight = weight_of(spec_of(packed), 9, 21)
    x = torch.randn(21, 4, 3, generator=generator(0)).permute(2, 1, 0)
    agree(ternary.matmul(x, weight, None), reference_matmul(x, weight, None))
    # One byte into a buffer: as in a file that is mapped.
    stored = weight.tensors["weight"]
    buffer = torch.zeros(stored.numel() + 1, dtype=torch.uint8)
    buffer[1:] = stored.flatten()
    moved = PackedWeight(dict(weight.tensors) | {"weight": buffer[1:].view(stored.shape)}, weight.shape, weight.format)
    assert torch.equal(ternary.matmul(x, moved, None), ternary.matmul(x, weight, None))


@each_level
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_token_that_is_not_finite_gives_nan_and_spoils_no_other(level, broken):
    library.set_level(level)
    weight = weight_of(spec_of("2bit"), 20, 70)
    for tokens in (2, 30):
        x = torch.randn(tokens, 70, generator=generator(0))
        clean = ternary.matmul(x, weight, None)
        x[1, 69] = broken
        found = ternary.matmul(x, weight, None)
        assert found[1].isnan().all()
        assert torch.equal(found[0], clean[0])
        assert torch.equal(found[2:], clean[2:])


@each_packing
@pytest.mark.parametrize(("tokens", "rows", "columns"), [(0, 5, 7), (3, 0, 7), (3, 5, 0), (0, 0, 0)])
def test_nothing_to_do(packed, tokens, rows, columns):
    codes = PACK[packed](random_codes(rows, columns))
    found = ternary.multiply(torch.randn(tokens, columns), codes, torch.ones(1), packed, rows, torch.ones(rows))
    assert torch.equal(found, torch.ones(tokens, rows))


def test_what_kernels_are_not_made_for_is_refused():
    weight = weight_of(spec_of("2bit"), 6, 21)
    codes, scale, x = weight.tensors["weight"], weight.tensors["weight_scale"], torch.randn(2, 21)
    assert not ternary.supports(x.double(), weight)
    assert not ternary.supports(x.to("meta"), weight)
    assert not ternary.supports(x, weight_of(spec_of("2bit", activations="none"), 6, 21))
    grouped = format_for(TernaryBits(format="ternary", granularity="group", group_size=4))
    stored = grouped.compress(Codes(random_codes(6, 21), torch.rand(6, 6)))
    assert not ternary.supports(x, PackedWeight(stored, (6, 21), grouped))
    for wrong in (
        lambda: ternary.multiply(x.double(), codes, scale, "2bit", 6),
        lambda: ternary.multiply(x, codes.view(torch.int8), scale, "2bit", 6),
        lambda: ternary.multiply(x, codes, scale, "base3", 6),
        lambda: ternary.multiply(x, codes, torch.ones(4), "2bit", 6),
        lambda: ternary.multiply(x, codes, scale, "2bit", 6, torch.ones(5)),
        lambda: ternary.accumulate(torch.full((2, 21), -128, dtype=torch.int8), codes, "2bit", 6),
    ):
        with pytest.raises(FormatError):
            wrong()


def packed_experts(
    spec: TernaryBits,
    count: int,
    hidden: int,
    inner: int,
    gated: bool = True,
    activation: str = "silu",
    bias: bool = False,
) -> PackedExperts:
    shapes = [(inner, hidden), (inner, hidden), (hidden, inner)] if gated else [(inner, hidden), (hidden, inner)]
    made = [weight_of(spec, *shape, seed=seed) for seed, shape in enumerate(shapes * count)]
    biases = [torch.randn(part.shape[0], generator=generator(seed)) for seed, part in enumerate(made)] if bias else []
    weights = [part.tensors["weight"] for part in made]
    scales = [part.tensors["weight_scale"] for part in made]
    return PackedExperts(weights, scales, biases, made[0].format, gated, hidden, inner, activation)


def routing(tokens: int, count: int, top_k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    scores = torch.rand(tokens, count, generator=generator(seed))
    gates, chosen = scores.topk(top_k)
    return chosen, gates


def closely(found: Tensor, expected: Tensor) -> None:
    """Equal to rounding but where an inner activation fell on the other side of a half, which few do."""
    error = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-20)
    assert float(error.quantile(0.5)) < 2e-6
    assert float(error.max()) < 2e-2


@each_level
@each_packing
@pytest.mark.parametrize("activation", list(routed.ACTIVATIONS))
@pytest.mark.parametrize("gated", [True, False], ids=["gated", "plain"])
def test_experts_are_those_of_the_torch_path(level, packed, activation, gated):
    library.set_level(level)
    experts = packed_experts(spec_of(packed, granularity="channel"), 4, 70, 131, gated, activation, bias=True)
    for tokens, top_k in ((1, 1), (1, 3), (7, 2), (40, 1)):
        x = torch.randn(tokens, 70, generator=generator(tokens))
        chosen, gates = routing(tokens, 4, top_k)
        assert ternary.supports_experts(x, experts)
        closely(ternary.experts(x, chosen, gates, experts), routed.route(x, chosen, gates, experts))


@each_level
def test_experts_give_the_same_bits_on_any_threads(level):
    library.set_level(level)
    experts = packed_experts(spec_of("2bit"), 5, 256, 1030)
    chosen, gates = routing(300, 5, 3)
    x = torch.randn(300, 256, generator=generator(0))
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(ternary.experts(x, chosen, gates, experts))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    # And a token's result does not depend on its company.
    alone = torch.cat([ternary.experts(x[i : i + 1], chosen[i : i + 1], gates[i : i + 1], experts) for i in range(9)])
    assert torch.equal(found[0][:9], alone)


@each_dtype
def test_experts_in_every_type(dtype):
    experts = packed_experts(spec_of("base3", scale_dtype="float16"), 3, 64, 200)
    chosen, gates = routing(50, 3, 2)
    x = torch.randn(50, 64, generator=generator(0)).to(dtype)
    found = ternary.experts(x, chosen, gates, experts)
    expected = routed.route(x.float(), chosen, gates, experts)
    assert found.dtype == dtype
    assert float((found.float() - expected).norm() / expected.norm()) < 2 * RELATIVE[dtype] + 1e-3


def test_experts_that_nobody_asks_and_tokens_that_ask_nobody():
    experts = packed_experts(spec_of("2bit"), 4, 32, 48)
    x = torch.randn(6, 32, generator=generator(0))
    chosen = torch.tensor([[2, -1], [-1, -1], [2, 0], [-1, 2], [0, 2], [2, 0]])
    gates = torch.rand(6, 2, generator=generator(1))
    expected = routed.route(x, chosen, gates, experts)
    closely(ternary.experts(x, chosen, gates, experts)[[0, 2, 3, 4, 5]], expected[[0, 2, 3, 4, 5]])
    assert not ternary.experts(x, chosen, gates, experts)[1].any()
    assert ternary.experts(x[:0], chosen[:0], gates[:0], experts).shape == (0, 32)


@pytest.mark.parametrize("wrong", [4, -2, 2**40])
def test_an_expert_that_does_not_exist_is_refused(wrong):
    experts = packed_experts(spec_of("2bit"), 4, 32, 48)
    chosen, gates = routing(6, 4, 2)
    chosen[3, 1] = wrong
    with pytest.raises(KernelError):
        ternary.experts(torch.randn(6, 32), chosen, gates, experts)


def test_a_token_that_is_not_finite_spoils_no_other_in_experts():
    experts = packed_experts(spec_of("2bit"), 2, 32, 48)
    x = torch.randn(9, 32, generator=generator(0))
    chosen, gates = routing(9, 2, 2)
    clean = ternary.experts(x, chosen, gates, experts)
    x[4, 0] = math.nan
    found = ternary.experts(x, chosen, gates, experts)
    assert found[4].isnan().all()
    assert torch.equal(found[[0, 1, 2, 3, 5, 6, 7, 8]], clean[[0, 1, 2, 3, 5, 6, 7, 8]])


def test_calls_are_counted():
    before = library.calls()
    ternary.multiply(torch.randn(1, 8), PACK["2bit"](random_codes(4, 8)), torch.ones(1), "2bit", 4)
    ternary.experts(torch.randn(1, 32), *routing(1, 2, 1), packed_experts(spec_of("2bit"), 2, 32, 48))
    after = library.calls()
    assert after["ternary_matmul"] == before["ternary_matmul"] + 1
    assert after["ternary_experts"] == before["ternary_experts"] + 1
