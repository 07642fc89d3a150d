from __future__ import annotations

import numpy as np
import pytest
import torch

from mote_quant.qat.fake import fake_quantize
from mote_quant.recipe.schema import TernaryBits
from mote_quant.ternary.quantize import EPSILON, absmean_scale, expand_scale, scaled_codes


def spec(granularity: str = "tensor", **more) -> TernaryBits:
    return TernaryBits(format="ternary", granularity=granularity, **more)


def weights(rows: int = 7, columns: int = 11, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def naive(weight: torch.Tensor, granularity: str, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and per-element scales by the formula, element by element, in float64 with float32 scales."""
    w = weight.numpy().astype(np.float64)
    scale = np.empty_like(w)
    for row in range(w.shape[0]):
        for column in range(w.shape[1]):
            if granularity == "tensor":
                part = w
            elif granularity == "channel":
                part = w[row]
            else:
                part = w[row, column // group * group : (column // group + 1) * group]
            scale[row, column] = np.float32(max(np.abs(part).mean(), EPSILON))
    return np.clip(np.rint(w.astype(np.float32) / scale.astype(np.float32)), -1, 1), scale


@pytest.mark.parametrize(
    ("granularity", "group"), [("tensor", 4), ("channel", 4), ("group", 4), ("group", 11), ("group", 3)]
)
def test_codes_and_scales_follow_the_formula(granularity, group):
    more = {"group_size": group} if granularity == "group" else {}
    chosen, weight = spec(granularity, **more), weights()
    scale = absmean_scale(weight, chosen)
    codes, scales = naive(weight, granularity, group)
    expanded = expand_scale(scale, chosen, 11).expand(7, 11)
    np.testing.assert_allclose(expanded.numpy(), scales, rtol=1e-7)
    assert np.array_equal(scaled_codes(weight, scale, chosen).numpy(), codes)


def test_the_short_last_group_is_averaged_over_its_own_columns():
    weight = torch.tensor([[1.0, 1.0, 1.0, 1.0, 3.0]])
    assert absmean_scale(weight, spec("group", group_size=4)).tolist() == [[1.0, 3.0]]


@pytest.mark.parametrize(("granularity", "shape"), [("tensor", (1,)), ("channel", (7, 1)), ("group", (7, 3))])
def test_scale_shapes_and_type(granularity, shape):
    more = {"group_size": 4} if granularity == "group" else {}
    scale = absmean_scale(weights().bfloat16(), spec(granularity, scale_dtype="float16", **more))
    assert scale.shape == shape
    assert scale.dtype == torch.float16


def test_the_mean_is_summed_more_precisely_than_float32_can():
    # 2^24 ones and then ones that a running float32 sum would lose.
    weight = torch.full((4, 1 << 20), 1.0)
    weight[0, 0] = float(1 << 26)
    exact = (float(1 << 26) + 4 * (1 << 20) - 1) / (4 * (1 << 20))
    assert absmean_scale(weight, spec()).item() == np.float32(exact)


def test_codes_are_found_again_from_the_stored_scale():
    weight, chosen = weights(), spec("channel", scale_dtype="float16")
    scale = absmean_scale(weight, chosen)
    kept = scale.clone()
    quantized = fake_quantize(weight, chosen)
    again = scaled_codes(quantized, kept, chosen)
    assert torch.equal(again, scaled_codes(weight, scale, chosen))
    assert torch.equal(quantized, again.float() * kept.float())


def test_zero_weights_give_zero_codes_and_no_nan():
    for granularity in ("tensor", "channel", "group"):
        chosen = spec(granularity, scale_dtype="float16", **({"group_size": 4} if granularity == "group" else {}))
        scale = absmean_scale(torch.zeros(3, 5), chosen)
        assert (scale > 0).all()
        assert not scaled_codes(torch.zeros(3, 5), scale, chosen).any()
        assert torch.equal(fake_quantize(torch.zeros(3, 5), chosen), torch.zeros(3, 5))


def test_the_gradient_is_the_identity_even_for_clipped_weights():
    weight = weights().mul_(10).requires_grad_()
    upstream = weights(seed=1)
    (fake_quantize(weight, spec()) * upstream).sum().backward()
    assert torch.equal(weight.grad, upstream)


def test_strength_blends_between_full_precision_and_ternary():
    weight = weights()
    full = fake_quantize(weight, spec())
    assert torch.equal(fake_quantize(weight, spec(), 0.0), weight)
    torch.testing.assert_close(fake_quantize(weight, spec(), 0.25), 0.75 * weight + 0.25 * full)
    assert torch.equal(fake_quantize(weight, spec(), 1.0), full)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_result_has_the_type_of_the_weight_and_leaves_it_alone(dtype):
    weight = weights().to(dtype)
    before = weight.clone()
    assert fake_quantize(weight, spec()).dtype == dtype
    assert torch.equal(weight, before)
