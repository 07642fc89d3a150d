from __future__ import annotations

import torch
from torch import nn

from mote_quant.steps.quantize.observe import HELD_OUT_ROWS, SAMPLE_ROWS, Observers

HESSIAN, INPUTS = frozenset({"hessian"}), frozenset({"inputs"})


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 4)

    def forward(self, x):
        return self.c(self.a(x) + self.b(x))


def observe(needs, batches, masks=None, first_held_out=None):
    model = Pair()
    masks = masks or [None] * len(batches)
    observers = Observers(model, needs, masks, len(batches) if first_held_out is None else first_held_out)
    with torch.no_grad(), observers.watching():
        for number, batch in enumerate(batches):
            observers.begin(number)
            model(batch)
    return observers


def batches(count: int, rows: int = 5) -> list[torch.Tensor]:
    return [torch.randn(2, rows, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(count)]


def test_modules_that_are_fed_alike_share_one_sum():
    data = batches(3)
    observers = observe({"a": HESSIAN, "b": HESSIAN, "c": HESSIAN}, data)
    x = torch.cat([batch.flatten(0, 1) for batch in data])
    expected = 2 / len(x) * x.T @ x
    assert observers._groups["a"] is observers._groups["b"]
    assert observers._groups["a"] is not observers._groups["c"]
    for name in "ab":
        assert observers.tokens(name) == 30
        torch.testing.assert_close(observers.seen(name).hessian, expected)
    observers.forget("a")
    torch.testing.assert_close(observers.seen("b").hessian, expected)
    assert observers.seen("a") is None


def test_modules_with_other_needs_do_not_share():
    observers = observe({"a": HESSIAN, "b": INPUTS, "c": frozenset()}, batches(2))
    assert observers.seen("a").inputs is None
    assert observers.seen("b").hessian is None
    assert observers.seen("b").inputs.shape == (20, 4)
    assert observers.seen("c").tokens == 20


def test_padding_is_not_counted():
    data = batches(2)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 2:] = False
    observers = observe({"a": HESSIAN}, data, [mask, None])
    x = torch.cat([data[0][mask], data[1].flatten(0, 1)])
    assert observers.tokens("a") == 17
    torch.testing.assert_close(observers.seen("a").hessian, 2 / 17 * x.T @ x)


def test_held_out_batches_are_kept_apart():
    data = batches(3)
    observers = observe({"a": HESSIAN | INPUTS}, data, first_held_out=2)
    assert observers.tokens("a") == 20
    assert observers.seen("a").inputs.shape == (20, 4)
    assert torch.equal(observers.held_out("a"), data[2].flatten(0, 1))
    assert observers.held_out("b") is None


def test_only_so_many_tokens_are_kept():
    observers = observe({"a": INPUTS}, batches(4, rows=300), first_held_out=3)
    assert SAMPLE_ROWS <= len(observers.seen("a").inputs) <= SAMPLE_ROWS + 3
    assert len(observers.held_out("a")) == HELD_OUT_ROWS
    assert observers.tokens("a") == 1800


def test_nothing_seen():
    observers = observe({"a": HESSIAN}, [])
    assert observers.tokens("a") == 0
    assert observers.seen("a") is None
