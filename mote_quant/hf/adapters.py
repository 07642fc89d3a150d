"""LoRA of PEFT on packed layers: the weights stay packed and frozen, gradients pass through them to the adapters.

PEFT knows no layer but its own list and what a LoraConfig was told of; every LoraConfig is told of ours. Imported while
PEFT itself is (see `mote_quant.hf.registration`), never by anything else here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

import torch
from peft.tuners.lora.config import LoraConfig
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from mote_quant.errors import RequestError
from mote_quant.kernels.packed_linear import PackedLinear
from mote_quant.moe.block import DenseKeyGuard

_UNMERGED = (
    "LoRA cannot be merged into packed weights: their codes would have to be found anew. Keep the adapter beside the "
    "model, or take it off with unload()"
)


class PackedLora(nn.Module, LoraLayer):  # type: ignore[misc]
    """`base(x) + scaling * B(A(dropout(x)))` for every active adapter, where `base` is packed."""

    base_layer: nn.Module
    lora_A: nn.ModuleDict  # noqa: N815
    lora_B: nn.ModuleDict  # noqa: N815
    lora_dropout: nn.ModuleDict
    scaling: Any
    active_adapters: Any
    update_layer: Any

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: Any, r: int = 0, lora_alpha: int = 1, **kwargs: Any
    ) -> None:
        super().__init__()
        LoraLayer.__init__(self, base_layer)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, lora_alpha=lora_alpha, config=config)

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        return cast("tuple[int, int]", (module.in_features, module.out_features))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """[..., in] -> [..., out] in the type of x."""
        result = cast(Tensor, self.base_layer(x))
        if self.disable_adapters:
            return result
        for name in self.active_adapters:
            if name in self.lora_A:
                result = result + self._change(x, name).to(result.dtype)
        return result

    def _change(self, x: Tensor, name: str) -> Tensor:
        first, second = self.lora_A[name], self.lora_B[name]
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(cast(nn.Linear, first).weight.dtype)
        change: Tensor = second(first(self.lora_dropout[name](x))) * self.scaling[name]
        return change

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused: RequestError."""
        raise RequestError(_UNMERGED)

    def unmerge(self) -> None:
        """Refused: nothing was merged."""
        raise RequestError(_UNMERGED)


def register() -> None:
    """Have every LoraConfig know our layers; a second call changes nothing."""
    made = LoraConfig.__post_init__
    if not getattr(made, "knows_packed", False):
        cast(Any, LoraConfig).__post_init__ = _telling(made)


def _telling(made: Callable[[Any], None]) -> Callable[[Any], None]:
    @wraps(made)
    def post_init(config: Any) -> None:
        made(config)
        config._register_custom_module({PackedLinear: PackedLora, DenseKeyGuard: _left_alone})

    post_init.knows_packed = True  # type: ignore[attr-defined]
    return post_init


def _left_alone(guard: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """A guard has the name of a dense projection, and so it is found where that is targeted; it computes nothing."""
    return guard


register()
