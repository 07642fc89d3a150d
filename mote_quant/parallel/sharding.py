"""FSDP2: every parameter in as many parts as there are processes, whole only while its layer is at work."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from mote_quant.anatomy.structure import decoder_layers
from mote_quant.moe import blocks
from mote_quant.parallel.codes import known_by_codes
from mote_quant.qat.linear import QatLinear
from mote_quant.ranks import ranks


def twin(model: nn.Module) -> nn.Module:
    """Another tree of the same modules with the same parameters and buffers: sharding one leaves the other whole."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def shard(model: nn.Module, compute: torch.dtype | None = None, codes: bool = False) -> list[nn.Parameter]:
    """Shard `model`, a decoder layer at a time, over all processes; returns the parameters that stay whole on each.

    Those are few and small: of routers, whose arithmetic is float32, learned scales, and what has no rows. Trained
    dense weights travel and are multiplied in `compute`; latent ones travel as they are, for their codes are a function
    of all their bits. With `codes` those that backward knows by their codes are gathered for forward only.
    """
    coded = list(known_by_codes(model)) if codes else []
    mesh, units = _mesh(), list(_units(model, compute, coded))
    kept = [*_kept(model)]
    kept += _of_other_types([unit for unit, _ in units], {id(parameter) for parameter in kept})
    for unit, policy in units:
        fully_shard(unit, mesh=mesh, mp_policy=policy, ignored_params=set(kept))
    for experts in coded:
        cast(FSDPModule, experts).set_unshard_in_backward(False)
    for parameter in kept:
        parameter.data = parameter.data.to(mesh.device_type)
    return kept


def _units(
    model: nn.Module, compute: torch.dtype | None, coded: Sequence[nn.Module]
) -> Iterator[tuple[nn.Module, MixedPrecisionPolicy]]:
    """What is gathered at a time, inner ones first: of decoder layers what trains in another way, these, the rest."""
    reduced = torch.float32 if compute else None
    as_held, computed = (MixedPrecisionPolicy(kind, reduced) for kind in (None, compute))
    for _, layer in decoder_layers(model):
        yield from ((part, as_held) for part in layer.modules() if part in coded)
        types = {parameter.dtype for parameter in layer.parameters() if parameter.requires_grad}
        if compute or len(types) > 1:
            yield from ((part, computed) for part in _dense_parts(layer))
        yield layer, as_held
    yield model, as_held


def _of_other_types(units: list[nn.Module], known: set[int]) -> Iterator[nn.Parameter]:
    """What trains in a type that most of its unit does not have (biases, norms): a unit is exchanged in one type."""
    for unit in units:
        own = [p for p in unit.parameters() if p.requires_grad and id(p) not in known]
        known.update(id(parameter) for parameter in own)
        sizes = Counter[torch.dtype]()
        for parameter in own:
            sizes[parameter.dtype] += parameter.numel()
        most = max(sizes, key=lambda dtype: sizes[dtype], default=None)
        yield from (parameter for parameter in own if parameter.dtype != most)


def _dense_parts(module: nn.Module) -> Iterator[nn.Module]:
    """The largest parts with linear layers that train in full precision, and none that trains for its codes."""
    for child in module.children():
        trains = any(parameter.requires_grad for parameter in child.parameters())
        kinds = {type(part) for part in child.modules()}
        if trains and (QatLinear in kinds or isinstance(child, nn.ModuleList)):
            yield from _dense_parts(child)
        elif trains and nn.Linear in kinds:
            yield child


def _mesh() -> DeviceMesh:
    accelerator = torch.accelerator.current_accelerator()
    return init_device_mesh("cpu" if accelerator is None else accelerator.type, (ranks().world,))


def _kept(model: nn.Module) -> Iterator[nn.Parameter]:
    routers = tuple(f"{path}.gate." for path in blocks(model))
    for name, parameter in model.named_parameters():
        if name.startswith(routers) or name.endswith(".weight_scale") or not parameter.dim() or not parameter.numel():
            yield parameter


@torch.no_grad()
def average(parameters: list[nn.Parameter]) -> None:
    """Give the parameters that stay whole the mean of all processes' gradients, in one exchange for each type."""
    found = [parameter for parameter in parameters if parameter.requires_grad]
    if all(parameter.grad is None for parameter in found):
        # A step that every process leaves out: zeros would still move what has momentum.
        return
    for dtype in dict.fromkeys(parameter.dtype for parameter in found):
        gradients = [_gradient(parameter) for parameter in found if parameter.dtype == dtype]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= ranks().world
        for gradient, part in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))


def _gradient(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def at_rest(model: nn.Module) -> None:
    """Every weight of a sharded model in its parts again: a forward without a backward leaves some of them whole."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process has to ask, and gets it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def norms(groups: Sequence[Sequence[Tensor]]) -> Tensor:
    """The Euclidean norm of each group of gradients, float32 [groups]; sharded ones are counted whole, in one exchange.

    To be called by all processes, with the same groups.
    """
    every = [gradient for group in groups for gradient in group]
    if not every:
        return torch.zeros(len(groups))
    device = every[0].device
    parts, others = (torch.stack([_square(group, sharded).to(device) for group in groups]) for sharded in (True, False))
    if any(isinstance(gradient, DTensor) for gradient in every):
        dist.all_reduce(parts)
    return (parts + others).sqrt()


def _square(gradients: Sequence[Tensor], sharded: bool) -> Tensor:
    """The sum of squares of what is here of those that are sharded, or of the others."""
    found = [_local(gradient).detach() for gradient in gradients if isinstance(gradient, DTensor) is sharded]
    if not found:
        return torch.zeros(())
    each = torch._foreach_norm(found, dtype=torch.float32)
    return torch.stack([norm.to(each[0].device) for norm in each]).square().sum()


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local


@torch.no_grad()
def clip(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients, sharded ones and others, so that their norm is at most `largest`; returns the norm before."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = norms([gradients])[0]
    factor = torch.clamp(largest / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        _local(gradient).mul_(factor)
    return norm


def of_kind(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same groups of parameters, sharded and whole ones apart: no kernel takes both."""
    parted = []
    for group in groups:
        for sharded in (True, False):
            found = [p for p in cast("list[nn.Parameter]", group["params"]) if isinstance(p, DTensor) is sharded]
            parted.append({**group, "params": found})
    return [group for group in parted if group["params"]]
