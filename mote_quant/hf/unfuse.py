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
from mote_quant.moe.native import NativeExperts


def unfuse_named(model: nn.Module, names: Iterable[str]) -> None:
    """Take apart the fused experts of `model` in which any of `names` (of modules, or of parameters) lies."""
    wanted = {f"{holder}." for name in names for holder in _above_numbers(name)}
    unfuse(model, [path for path in fused_experts(model) if f"{path}." in wanted])


def unfuse(model: nn.Module, paths: Sequence[str]) -> None:
    """Put a `NativeExperts` in the place of the fused experts at each of `paths`, layer by layer.

    Types, devices and numbers stay; on a live model a few tokens are computed both ways. UnsupportedModelError for
    experts that cannot be taken apart. Peak memory: the model and once more the gate and up weights of one layer.
    """
    for path in paths:
        _unfuse(model, path)


def _unfuse(model: nn.Module, path: str) -> None:
    from mote_quant.hf.conversions import merges

    fused = model.get_submodule(path)
    layout = read_fused(path, fused)
    guard = None if merges(model, path, layout.first) else layout.first
    experts = [_expert(fused, layout, index) for index in range(layout.experts)]
    native = NativeExperts(experts, fused.get_submodule(layout.activation), guard).train(fused.training)
    _verify(fused, native, layout)
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, native)
    # The linear layers are views so far: copied kind by kind, the fused storage goes as soon as its last view has.
    del fused
    for kind in layout.linears:
        for expert in experts:
            linear = cast(nn.Linear, expert.get_submodule(kind))
            linear.weight.data = linear.weight.data.clone()


def _expert(fused: nn.Module, layout: FusedExperts, index: int) -> Expert:
    first, down = fused.get_parameter(layout.first), fused.get_parameter(DOWN)
    gate = _linear(first, first[index, : layout.inner]) if layout.gated else None
    return Expert(_linear(first, first[index, -layout.inner :]), _linear(down, down[index]), gate)


def _linear(fused: nn.Parameter, weight: Tensor) -> nn.Linear:
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = nn.Parameter(weight.detach(), requires_grad=fused.requires_grad)
    return linear


@torch.no_grad()
def _verify(fused: nn.Module, native: NativeExperts, layout: FusedExperts) -> None:
    """UnsupportedModelError unless both give the same for a few tokens of the first and the last expert."""
    weight = fused.get_parameter(DOWN)
    if weight.is_meta:
        return
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, layout.hidden, generator=generator).to(weight)
    chosen = torch.tensor([[0], [0], [layout.experts - 1], [layout.experts - 1]], device=weight.device)
    gates = torch.ones_like(chosen, dtype=weight.dtype)
    theirs, ours = fused(x, chosen, gates).float(), native(x, chosen, gates).float()
    off = float((ours - theirs).norm() / theirs.norm().clamp_min(torch.finfo(torch.float32).tiny))
    if off > TOLERANCE.get(weight.dtype, HALF_TOLERANCE):
        raise UnsupportedModelError(
            f"the experts of {layout.path} ({type(fused).__name__}) cannot be quantized one by one: their output is "
            f"{off:.1%} off from that of plain feed-forward blocks, so their forward does something else"
        )


def _above_numbers(name: str) -> Iterator[str]:
    """The parts of a dotted name that end before a number: `a.experts` of `a.experts.3.up_proj`."""
    parts = name.split(".")
    return (".".join(parts[:index]) for index, part in enumerate(parts) if part.isdigit())
