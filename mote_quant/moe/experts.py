"""The routed experts: one call serves all experts of a layer, tokens sorted by expert."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.moe.joining import merge
from mote_quant.moe.partaking import take_part
from mote_quant.moe.router import Choice
from mote_quant.moe.trained import feed_forward, grouped_feed_forward


class Expert(nn.Module):
    """One feed-forward network: `down(act(gate(x)) * up(x))`, or `down(act(up(x)))` where there is no gate."""

    def __init__(self, up_proj: nn.Module, down_proj: nn.Module, gate_proj: nn.Module | None = None) -> None:
        super().__init__()
        if gate_proj is not None:
            self.gate_proj = gate_proj
        self.up_proj = up_proj
        self.down_proj = down_proj

    @property
    def layers(self) -> list[nn.Module]:
        """Up, gate if there is one, down."""
        gated = getattr(self, "gate_proj", None)
        return [self.up_proj, *([] if gated is None else [gated]), self.down_proj]

    def forward(self, x: Tensor, activation: nn.Module) -> Tensor:
        """`x` is [n, hidden] as `quantize_input` of the first projection returned it."""
        if (trained := feed_forward(self.layers, x, activation)) is not None:
            return trained
        up = multiply(self.up_proj, x)
        gated = getattr(self, "gate_proj", None)
        return cast(Tensor, self.down_proj(merge(up, None if gated is None else multiply(gated, x), activation)))


class Experts(nn.ModuleList):
    """The experts of a layer as one module, which processes that share a model out can take hold of."""

    def forward(self, x: Tensor, choice: Choice, activation: nn.Module) -> Tensor:
        """As `route`."""
        return route(x, self, choice, activation)


def multiply(linear: nn.Module, x: Tensor) -> Tensor:
    """The product of `linear` with an input it need not quantize again."""
    return cast(Tensor, getattr(linear, "multiply", linear)(x))


def quantize_input(linear: nn.Module, x: Tensor) -> Tensor:
    """`x` as `linear` sees it: int8 per token and back for a ternary layer, unchanged for others."""
    prepare = getattr(linear, "quantize_input", None)
    return x if prepare is None else cast(Tensor, prepare(x))


class _Permute(torch.autograd.Function):
    """Rows in another order. The backward gathers too: a scatter-add would not be deterministic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return x.index_select(0, order)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (inverse,) = ctx.saved_tensors
        return gradients[0].index_select(0, inverse), None, None


def permute(x: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """`x[order]` for a permutation `order` of the rows with its `inverse`."""
    return cast(Tensor, _Permute.apply(x, order, inverse))  # type: ignore[no-untyped-call]


def visit(expert: Expert, x: Tensor, activation: nn.Module) -> Tensor:
    """What `expert` makes of tokens `x` [n, hidden], whomever the router would send them to."""
    return cast(Tensor, expert(quantize_input(expert.up_proj, x), activation))


def dispatch(x: Tensor, experts: Sequence[Expert], chosen: Tensor, activation: nn.Module) -> Tensor:
    """What each token's experts make of it: `x` [T, hidden], `chosen` (integers) [T, k] -> [T, k, hidden].

    No capacity, no dropped tokens, empty experts cost nothing. torch.compile leaves it out: how many tokens an expert
    gets is known only at run time, and a graph made for one count is of no use for the next.
    """
    if torch.compiler.is_compiling():
        return cast(Tensor, _untraced(x, experts, chosen, activation))
    return _dispatch(x, experts, chosen, activation)


def _dispatch(x: Tensor, experts: Sequence[Expert], chosen: Tensor, activation: nn.Module) -> Tensor:
    tokens, top_k = chosen.shape
    x = quantize_input(experts[0].up_proj, x)
    flat = chosen.flatten()
    order = flat.argsort(stable=True)
    inverse = order.argsort()
    counts = torch.bincount(flat, minlength=len(experts)).tolist()
    repeated = x.unsqueeze(1).expand(tokens, top_k, x.shape[-1])
    if not len(flat):
        return take_part(repeated, experts, counts)
    rows = permute(repeated.flatten(0, 1), order, inverse)
    output = take_part(_through(rows, experts, counts, activation), experts, counts)
    return permute(output, inverse, order).view(tokens, top_k, -1)


_untraced = cast(Any, torch.compiler).disable(_dispatch)


def _through(rows: Tensor, experts: Sequence[Expert], counts: list[int], activation: nn.Module) -> Tensor:
    """Sorted rows, `counts` of them for each expert, through their experts."""
    # On CPU one product after the other is as fast, and needs no stack of all weights.
    if rows.is_cuda:
        together = grouped_feed_forward([expert.layers for expert in experts], rows, counts, activation)
        if together is not None:
            return together
    parts = zip(experts, torch.split(rows, counts), strict=True)
    return torch.cat([expert(part, activation) for expert, part in parts if len(part)])


def _dispatch_kept(x: Tensor, experts: Sequence[Expert], chosen: Tensor, kept: Tensor, activation: nn.Module) -> Tensor:
    """As `dispatch`, with 0 in the place of what is not `kept` [T, k]."""
    output = dispatch(x[kept.nonzero()[:, 0]], experts, chosen[kept].unsqueeze(-1), activation).squeeze(1)
    placed = output.new_zeros(*kept.shape, output.shape[-1])
    placed[kept] = output
    return placed


def route(x: Tensor, experts: nn.ModuleList, choice: Choice, activation: nn.Module) -> Tensor:
    """`sum_k gate_k * E_k(x)` for `x` [T, hidden], over the experts that the choice keeps; others cost nothing."""
    every = cast("Sequence[Expert]", experts)
    if choice.kept is None:
        output = dispatch(x, every, choice.experts, activation)
    else:
        output = _dispatch_kept(x, every, choice.experts, choice.kept, activation)
    return (output * choice.gates.unsqueeze(-1).to(output.dtype)).sum(dim=1)
