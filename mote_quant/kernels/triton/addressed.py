"""What kernels of routed experts share: a tile has rows of several weights, each found by its address."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def of_rows(addresses: tl.tensor, weight: tl.tensor, like: tl.tensor) -> tl.tensor:
    """For each row a pointer like `like` to what belongs to its weight."""
    return tl.load(addresses + weight).to(like.dtype)


@triton.jit
def starts_of(
    addresses: tl.tensor, weight: tl.tensor, like: tl.tensor, row: tl.tensor, width: tl.tensor, aligned: tl.constexpr
) -> tl.tensor:
    """Pointers to rows of weights; `aligned` says that all weights start at multiples of 16 bytes."""
    at = of_rows(addresses, weight, like)
    if aligned:
        return tl.multiple_of(at, 16) + row * width
    else:
        return at + row * width


@triton.jit
def finish(
    value: tl.tensor, row: tl.tensor, weight: tl.tensor, scales: tl.tensor, scale: tl.tensor, scale_stride: tl.tensor,
    biases: tl.tensor, bias: tl.tensor,
) -> tl.tensor:  # fmt: skip
    """Sums with the scales and the biases of their rows."""
    value *= tl.load(of_rows(scales, weight, scale) + row * scale_stride).to(tl.float32)
    if biases is not None:
        value += tl.load(of_rows(biases, weight, bias) + row).to(tl.float32)
    return value


@triton.jit
def activate(x: tl.tensor, name: tl.constexpr) -> tl.tensor:
    """The activation of this name in `kernels.experts.ACTIVATIONS`."""
    if name == "silu":
        return x * tl.sigmoid(x)
    elif name == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif name == "gelu_tanh":
        # 1 + tanh(z) is twice the sigmoid of 2 z.
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif name == "quick_gelu":
        return x * tl.sigmoid(1.702 * x)
    elif name == "relu2":
        return relu(x) * relu(x)
    else:
        tl.static_assert(name == "relu")
        return relu(x)


@triton.jit
def relu(x: tl.tensor) -> tl.tensor:
    """NaN stays NaN."""
    return tl.where(x < 0, 0.0, x)
