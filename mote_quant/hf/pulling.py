"""Router losses weigh what the loss weighs: the hook on a model that watches what becomes of the loss it returns.

HF Trainer has models divide by the labelled tokens of a whole step (`num_items_in_batch`), of which a forward sees a
part; TRL makes the loss itself of log-probabilities; accumulation, averaging and loss scaling come on top. The hook
changes no value, but for one: of a batch without any label the loss is 0, not the 0 / 0 that a mean makes of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.data.source import IGNORED
from mote_quant.errors import RequestError
from mote_quant.moe import blocks
from mote_quant.moe.pull import Pulls, felt, felt_by_tokens, felt_instead


class LossHook:
    """A forward hook (with keywords) of the model whose losses train the mixture layers that share its `pulls`."""

    def __init__(self, pulls: Pulls) -> None:
        self.pulls = pulls

    def __call__(self, model: nn.Module, args: Any, given: Mapping[str, Any], outputs: Any) -> Any:
        """In training, the outputs with a loss that tells its pull."""
        if not (model.training and torch.is_grad_enabled()) or given.get("labels") is None:
            return outputs
        return _untraced(outputs, given, self.pulls)


def _with_felt_losses(outputs: Any, given: Mapping[str, Any], pulls: Pulls) -> Any:
    log_probs, counted = _entry(outputs, "log_probs"), _entry(outputs, "label_mask")
    loss = outputs[0] if isinstance(outputs, tuple) else _entry(outputs, "loss")
    if log_probs is not None and counted is not None and log_probs.requires_grad:
        outputs["log_probs"] = felt_by_tokens(log_probs, counted.bool(), pulls)
    elif loss is not None and loss.requires_grad:
        labelled = _labelled(given)
        items = given.get("num_items_in_batch")
        loss = felt(_finite_without_labels(loss, labelled), pulls, 1.0 if items is None else _share(labelled, items))
        if isinstance(outputs, tuple):
            return (loss, *outputs[1:])
        outputs["loss"] = loss
    return outputs


# Traced, a backward could tell nobody what arrives at it; a break in the graph once a step costs little.
_untraced = cast(Any, torch.compiler).disable(_with_felt_losses)


def _entry(outputs: Any, name: str) -> Tensor | None:
    return cast("Tensor | None", outputs.get(name)) if isinstance(outputs, dict) else None


def _labelled(given: Mapping[str, Any]) -> Tensor:
    """How many positions have a label, as causal language models count: the first has none to be predicted from."""
    shifted = given.get("shift_labels")
    labels = cast(Tensor, given["labels"])[..., 1:] if shifted is None else cast(Tensor, shifted)
    return (labels != IGNORED).sum()


def _share(labelled: Tensor, items: Tensor | int) -> Tensor:
    counted = torch.as_tensor(items, device=labelled.device)
    return labelled / counted.clamp(min=1)


def _finite_without_labels(loss: Tensor, labelled: Tensor) -> Tensor:
    return torch.where(labelled.to(loss.device) > 0, loss, loss.nan_to_num(0.0))


def watch_losses(model: nn.Module) -> None:
    """Have the losses that `model` returns, and its mixture layers, know of each other. Again changes nothing."""
    hook = _hook_of(model)
    if hook is None:
        hook = LossHook(Pulls())
        model.register_forward_hook(hook, with_kwargs=True)
    for block in blocks(model).values():
        block.pulls = hook.pulls


def _hook_of(model: nn.Module) -> LossHook | None:
    return next((hook for hook in model._forward_hooks.values() if isinstance(hook, LossHook)), None)


def follow_loss(model: nn.Module, loss: Tensor, share: Tensor | float | None = None) -> Tensor:
    """`loss` unchanged; the router losses of the last forward of `model` weigh what it weighs in its backward.

    For a loss that is not the one `model` returned: your own, made of its logits, or a mixture of several. `share`, of
    one that is divided by the tokens of a whole step: the part of them that this forward saw. RequestError for a model
    without mixture layers.
    """
    found = next(iter(blocks(model).values()), None)
    if found is None:
        raise RequestError(f"{type(model).__name__} has no mixture layers whose losses could follow")
    return felt_instead(loss, found.pulls, share)
