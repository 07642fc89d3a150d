"""Take fused experts apart, so that all there is to know of linear layers (methods, formats, hooks) holds for them too.

Done to the layers of which a recipe asks it: on the meta skeleton when planning and reloading, on the live model before
it is quantized. One code path.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mote_quant.anatomy.numbers import HALF_TOLERANCE, TOLERANCE
from mote_quant.errors import UnsupportedModelError
from mote_quant.hf.fused import DOWN, FusedExperts, fused_experts, read_fused
from mote_quant.moe.experts import Expert
from mote_quant.moe.joining import OwnJoin
from mote_quant.moe.native import NativeExperts, WeighedExperts


def unfuse_named(model: nn.Module, names: Iterable[str]) -> None:
    """Take apart the fused experts of `model` in which any of `names` (of modules, or of parameters) lies."""
    wanted = {f"{holder}." for name in names for holder in _above_numbers(name)}
    unfuse(model, [path for path in fused_experts(model) if f"{path}." in wanted])


def unfuse(model: nn.Module, paths: Sequence[str], *, views: bool = False) -> None:
    """Put a `NativeExperts` in the place of the fused experts at each of `paths`, layer by layer.

    Types, devices and numbers stay; on a live model a few tokens are computed both ways. UnsupportedModelError for
    experts that cannot be taken apart. Peak memory: the model and once more the gate and up weights of one layer; with
    `views` no more than the model, but the weights go on sharing the storage of the fused ones (for mapped files).
    """
    for path in paths:
        _unfuse(model, path, views)


def _unfuse(model: nn.Module, path: str, views: bool) -> None:
    from mote_quant.hf.conversions import merges

    fused = model.get_submodule(path)
    layout = read_fused(path, fused)
    guard = None if merges(model, path, layout.first) else layout.first
    experts = [_expert(fused, layout, index) for index in range(layout.experts)]
    kind = WeighedExperts if layout.weighed else NativeExperts
    native = kind(experts, _activation(fused, layout), guard).train(fused.training)
    verify(fused, native, layout, (0, layout.experts - 1))
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, native)
    if views:
        return
    # The linear layers are views so far: copied kind by kind, the fused storage goes as soon as its last view has.
    del fused
    for part in layout.linears:
        for expert in experts:
            for parameter in expert.get_submodule(part).parameters():
                parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def _activation(fused: nn.Module, layout: FusedExperts) -> nn.Module:
    if layout.own_join:
        return OwnJoin(fused, layout.interleaved)
    return fused.get_submodule(cast(str, layout.activation))


def _expert(fused: nn.Module, layout: FusedExperts, index: int) -> Expert:
    trained = fused.get_parameter(DOWN).requires_grad
    made = {kind: _linear(*layout.parts(fused, kind, index), trained) for kind in layout.linears}
    return Expert(**made)


def _linear(weight: Tensor, bias: Tensor | None, trained: bool) -> nn.Linear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=trained)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach(), requires_grad=trained)
    return linear


@torch.no_grad()
def verify(fused: nn.Module, native: NativeExperts, layout: FusedExperts, which: tuple[int, int]) -> None:
    """UnsupportedModelError unless both give the same for a few tokens of the experts `which`."""
    weight = fused.get_parameter(DOWN)
    if weight.is_meta:
        return
    given = _given(layout, weight, *which)
    theirs, ours = fused(*given).float(), native(*given).float()
    off = float((ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo(torch.float32).tiny))
    if off > TOLERANCE.get(weight.dtype, HALF_TOLERANCE):
        raise UnsupportedModelError(
            f"the experts of {layout.path} ({type(fused).__name__}) cannot be quantized one by one: their output is "
            f"{off:.1%} off from that of plain feed-forward blocks, so their forward does something else"
        )


def _given(layout: FusedExperts, like: Tensor, one: int, other: int) -> tuple[Tensor, ...]:
    """Two tokens for one expert and two for another, as the experts are called with them."""
    x = torch.randn(4, layout.hidden, generator=torch.Generator().manual_seed(0)).to(like)
    if layout.weighed:
        every = x.new_zeros(layout.experts, *x.shape)
        every[one, :2], every[other, 2:] = x[:2], x[2:]
        return (every.flatten(0, 1),)
    chosen = torch.tensor([[one], [one], [other], [other]], device=like.device)
    return x, chosen, torch.ones_like(chosen, dtype=like.dtype)


def _above_numbers(name: str) -> Iterator[str]:
    """The parts of a dotted name that end before a number: `a.experts` of `a.experts.3.up_proj`."""
    parts = name.split(".")
    return (".".join(parts[:index]) for index, part in enumerate(parts) if part.isdigit())
