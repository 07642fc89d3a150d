"""The native quantizers against the torch reference they stand in for: the same bits on every level."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mote_quant.errors import KernelError
from mote_quant.kernels.cpu import library, quantizers
from mote_quant.recipe.schema import BinaryBits, TernaryBits
from mote_quant.ternary import activation, quantize
from mote_quant.ternary.packing import pack_2bit
from tests.kernels.native_build import run_check

pytestmark = pytest.mark.skipif(library.library() is None, reason="the CPU kernels are not built")
KINDS = {"ternary": TernaryBits, "binary": BinaryBits}
TYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=[level.name for level in library.levels()])
def level(request):
    before = library.level()
    library.set_level(library.Level[request.param])
    yield request.param
    library.set_level(before)


@pytest.fixture
def reference(monkeypatch):
    """Calls a function with the native quantizers out of the way."""

    def call(function, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(quantizers, "supports", lambda x, dtype=None: False)
            return function(*arguments)

    return call


def spec(kind: str = "ternary", granularity: str = "tensor", group: int = 7):
    return KINDS[kind](
        format=kind, granularity=granularity, **({"group_size": group} if granularity == "group" else {})
    )


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Equal values of one type, NaN where the other has NaN."""
    return ours.dtype == theirs.dtype and torch.equal(torch.nan_to_num(ours), torch.nan_to_num(theirs)) and torch.equal(
        ours.isnan(), theirs.isnan()
    )  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("granularity", ["tensor", "channel", "group"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 33), (9, 256), (3, 4097), (130, 1030)])
def test_scales_codes_and_values_are_those_of_the_reference(level, reference, shape, granularity, kind, dtype):
    chosen, weight = spec(kind, granularity), random(*shape, dtype=dtype)
    assert quantizers.supports(weight)
    scale = quantize.absmean_scale(weight, chosen)
    assert torch.equal(scale, reference(quantize.absmean_scale, weight, chosen))
    codes = quantize.scaled_codes(weight, scale, chosen)
    assert torch.equal(codes, reference(quantize.scaled_codes, weight, scale, chosen))
    assert torch.equal(quantize.compact_codes(weight, scale, chosen), pack_2bit(codes))
    for result in TYPES:
        values = reference(quantize.scaled_values, weight, scale, chosen, result)
        assert same(quantize.scaled_values(weight, scale, chosen, result), values)
        packed = pack_2bit(codes), shape[1], scale, chosen, result
        assert same(quantize.compact_values(*packed), values)
        assert same(reference(quantize.compact_values, *packed), values)
        assert same(reference(quantize.compact_values, codes, *packed[1:]), values)


@given(seed=st.integers(0, 2**31), rows=st.integers(1, 40), columns=st.integers(1, 700), size=st.floats(-12, 12))
@settings(deadline=None)
def test_any_weight_gets_the_scale_and_the_codes_of_the_reference(seed, rows, columns, size):
    weight = random(rows, columns, seed=seed) * 10.0**size
    for granularity in ("tensor", "channel", "group"):
        chosen = spec(granularity=granularity, group=64)
        scale = quantize.absmean_scale(weight, chosen)
        mean = quantize.sums(weight.abs(), chosen) / quantize.counts(weight, chosen)
        assert torch.equal(scale, quantize.storable_scale(mean, chosen))
        expected = quantize.rounded(weight, quantize.expand_scale(scale, chosen, columns), chosen)
        assert torch.equal(quantize.scaled_codes(weight, scale, chosen), expected.to(torch.int8))


@given(scale=st.floats(2.0**-16, 2.0**99, width=32), steps=st.integers(-3, 3))
def test_a_weight_next_to_half_the_scale_is_rounded_as_its_quotient_is(scale, steps):
    half = torch.tensor([[scale]]) / 2
    for _ in range(abs(steps)):
        half = torch.nextafter(half, torch.tensor(float("inf") if steps > 0 else 0.0))
    weight, given_scale = torch.cat([half, -half], dim=1), torch.tensor([scale])
    codes = quantize.scaled_codes(weight, given_scale, spec())
    assert torch.equal(codes, torch.div(weight, given_scale).round().clamp(-1, 1).to(torch.int8))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_never_rounded_to_one(level, reference, bad):
    weight = random(4, 70)
    weight[2, 37] = bad
    for granularity in ("tensor", "channel", "group"):
        chosen = spec(granularity=granularity)
        scale = quantize.absmean_scale(weight, chosen)
        assert same(scale, reference(quantize.absmean_scale, weight, chosen))
        values = reference(quantize.scaled_values, weight, scale, chosen)
        assert values[2, 37].isnan()
        assert same(quantize.scaled_values(weight, scale, chosen), values)
        packed = quantize.compact_codes(weight, scale, chosen)
        assert same(quantize.compact_values(packed, 70, scale, chosen, torch.float32), values)
    finite = torch.tensor([0.5])
    assert same(
        quantize.scaled_values(weight, finite, spec()), reference(quantize.scaled_values, weight, finite, spec())
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (2, 3, 33), (5, 1408), (300, 500)])
def test_activations_are_those_of_the_reference(level, reference, shape, dtype):
    x = random(*shape, dtype=dtype) * torch.logspace(-8, 8, shape[-2]).unsqueeze(-1).to(dtype)
    x[..., 0, :] = 0.0
    for ours, theirs in zip(
        activation.quantize_activations(x), reference(activation.quantize_activations, x), strict=True
    ):
        assert same(ours, theirs)
    for result in TYPES:
        assert same(activation.round_activations(x, result), reference(activation.round_activations, x, result))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_token_that_is_no_number_spoils_itself_alone(level, reference, bad):
    x = random(3, 45)
    x[1, 20] = bad
    rounded = activation.fake_quantize_activations(x)
    assert same(rounded, reference(activation.fake_quantize_activations, x))
    assert rounded[1].isnan().any()
    assert rounded[[0, 2]].isfinite().all()


def test_every_level_and_any_number_of_threads_give_the_same_bits():
    weight, x, chosen = random(700, 1001), random(400, 1001), spec()
    before, threads = library.level(), torch.get_num_threads()
    found = []
    try:
        for level in library.levels():
            for count in (1, 2, 5):
                library.set_level(level)
                torch.set_num_threads(count)
                sums = quantizers.absolute_sums(weight.view(1, -1), weight.numel())
                scale = quantize.absmean_scale(weight, chosen)
                packed = quantize.compact_codes(weight, scale, chosen)
                found.append((sums, packed, activation.fake_quantize_activations(x)))
    finally:
        torch.set_num_threads(threads)
        library.set_level(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_weights_may_start_anywhere():
    memory = random(1, 4 * 35 + 1).flatten()
    weight, chosen = memory[1:].view(4, 35), spec()
    scale = quantize.absmean_scale(weight, chosen)
    assert torch.equal(
        quantize.scaled_codes(weight, scale, chosen), quantize.scaled_codes(weight.clone(), scale, chosen)
    )


def test_the_calls_are_counted_and_what_is_not_covered_goes_to_torch():
    before = library.calls()["quantize"]
    activation.fake_quantize_activations(random(3, 4))
    assert library.calls()["quantize"] == before + 1
    for x in (random(3, 4).half(), random(3, 4).double(), random(4, 3).t(), torch.empty(2, 3, device="meta")):
        assert not quantizers.supports(x)
        activation.fake_quantize_activations(x)
    assert library.calls()["quantize"] == before + 1


def test_too_few_scales_are_refused_not_read():
    with pytest.raises(KernelError, match="3 scales for 4 rows of 2 groups"):
        quantizers.codes(random(4, 10), torch.ones(3), 5, binary=False)


def test_under_the_sanitizers(tmp_path):
    printed = run_check("check_quantize", ("quantize", "counters", "level", "parallel"), tmp_path)
    assert "portable" in printed.split()
