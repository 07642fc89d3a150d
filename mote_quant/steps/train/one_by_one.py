"""An optimizer whose parameters are held in bfloat16, with no float32 copy of more than one of them at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.steps.train.libraries import Library, State
from mote_quant.steps.train.stochastic import Stream, own_part, round_

_SETTINGS = ("lr", "betas", "eps", "weight_decay")


class OneByOne(torch.optim.Optimizer):
    """Has the AdamW of a `library` move one parameter after the other, each in float32.

    What is held in bfloat16 is rounded there stochastically, by bits drawn from `seed`, the step and its name in
    `model`. `state` holds plain tensors, of the types that the library keeps.
    """

    def __init__(self, groups: list[dict[str, Any]], library: Library, model: nn.Module, seed: int, lr: float) -> None:
        self._library, self._seed = library, seed
        # Not in the groups, as torch has it: those of a sharded model, resumed whole, hold other parameters.
        self._names = {id(parameter): name for name, parameter in model.named_parameters()}
        self._worker = library.make([torch.zeros(1)])
        own = self._worker.param_groups[0]
        super().__init__(groups, {name: own[name] for name in _SETTINGS} | {"lr": lr, "steps": 0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            group["steps"] += 1
            for parameter in group["params"]:
                if parameter.grad is not None:
                    stream = Stream(self._seed, group["steps"], self._names[id(parameter)])
                    self._move(parameter, group, stream)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As `state_dict` returned it. (Torch would make every state the type of its parameter.)"""
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        live = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in zip(saved, live, strict=True):
            if index in state_dict["state"]:
                self.state[parameter] = dict(state_dict["state"][index])

    def _move(self, parameter: Tensor, group: dict[str, Any], stream: Stream) -> None:
        held = parameter.detach()
        wide = held if held.dtype == torch.float32 else held.float().contiguous()
        wide.grad = _laid_out_as(wide, cast(Tensor, parameter.grad))
        self.state[parameter] = self._worked(wide, self.state[parameter], group)
        if held.dtype == torch.bfloat16:
            values, start = own_part(wide)
            round_(values, stream, start)
        if wide is not held:
            parameter.copy_(wide)
        # bitsandbytes writes past autograd, by whose counter a layer knows that its codes are stale.
        torch.autograd.graph.increment_version(parameter)

    def _worked(self, wide: Tensor, state: State, group: dict[str, Any]) -> State:
        """Let the library move `wide`; returns its new state."""
        own = self._worker.param_groups[0]
        own["params"] = [wide]
        for name in _SETTINGS:
            if isinstance(own[name], Tensor):
                own[name].fill_(group[name])
            else:
                own[name] = group[name]
        here = {key: value.to(wide.device) if isinstance(value, Tensor) else value for key, value in state.items()}
        self._worker.state[wide] = self._library.unpacked(here)
        try:
            self._worker.step()
            return self._library.packed(self._worker.state[wide])
        finally:
            self._worker.state.clear()
            own["params"] = []


def _laid_out_as(other: Tensor, gradient: Tensor) -> Tensor:
    """`gradient` in the type and the strides of `other`: fused kernels walk through both as they lie in memory."""
    if gradient.stride() == other.stride():
        return gradient.to(other.dtype)
    return torch.empty_like(other).copy_(gradient)
