"""A training step of one mixture layer with fake quantization, beside the layers it is compared with.

Every contender does the same forward and backward, on the same tokens, in the same precision, as the train step runs
them: float32 weights, under autocast for bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from eval.benchmarks.rows import Row, compared
from eval.benchmarks.timing import race
from mote_quant.moe import MoteBlock
from mote_quant.moe.build import install
from mote_quant.moe.layout import PROJECTIONS, MoteLayout
from mote_quant.recipe.schema import TernaryBits

QAT, UNQUANTIZED, FULL_PRECISION, DENSE = "MoTE, QAT", "MoTE, unquantized", "full-precision MoE", "dense"
ADAMW = " + AdamW"
EXPERTS = 4
TERNARY = TernaryBits(format="ternary")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Task:
    """Tokens through a feed-forward layer [hidden -> inner -> hidden], and how long to measure."""

    hidden: int
    inner: int
    tokens: int
    dtype: str
    seconds: float
    rounds: range = range(5, 31)
    optimizer: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """As the other benchmarks name it: rows and columns of the up projection."""
        return self.inner, self.hidden


FULL = (
    Task(512, 1408, 2048, "float32", 12.0),
    Task(512, 1408, 2048, "bfloat16", 8.0, optimizer=True),
    Task(1536, 8960, 512, "bfloat16", 12.0),
)
QUICK = tuple(Task(64, 96, 32, dtype, 0.0, range(2, 3), optimizer=True) for dtype in DTYPES)


class FeedForward(nn.Module):
    """A dense SwiGLU layer."""

    def __init__(self, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


def mote(task: Task, quantized: bool) -> MoteBlock:
    """A frozen shared expert and the best of four trained ones."""
    block = mixture(task, shared=True, top_k=1, quantized=quantized)
    # As the train step leaves it: in the type in which the model is stored.
    block.shared_expert.requires_grad_(False).to(DTYPES[task.dtype])
    return block


def full_precision(task: Task) -> MoteBlock:
    """The mixture it replaces: the best two of four, all trained, nothing shared."""
    return mixture(task, shared=False, top_k=2, quantized=False)


def mixture(task: Task, shared: bool, top_k: int, quantized: bool) -> MoteBlock:
    """A layer in training mode, with seeded random weights."""
    torch.manual_seed(0)
    model = nn.ModuleDict({"mlp": FeedForward(task.hidden, task.inner)})
    names = {"path": "mlp", "kind": "gated", "up": "up_proj", "down": "down_proj", "gate": "gate_proj"}
    sizes = {"hidden_size": task.hidden, "intermediate_size": task.inner, "experts": EXPERTS, "top_k": top_k}
    combine: Any = {"combine": "additive", "mix": 0.5, "normalize_gates": False, "shared": shared}
    rest: Any = {"activation": "act_fn", "inline": False, "bias": False}
    specs = dict.fromkeys(PROJECTIONS, TERNARY) if quantized else {}
    block = install(model, MoteLayout(**names, **sizes, **combine, **rest, qat=specs))
    with torch.no_grad():
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return block.train()


def step(layer: nn.Module, task: Task, optimizer: torch.optim.Optimizer | None = None) -> Callable[[], None]:
    """One forward and backward of `layer`, and with an optimizer its step."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(task.tokens, task.hidden, generator=generator).requires_grad_()
    upstream = torch.randn(task.tokens, task.hidden, generator=generator)

    def run() -> None:
        with forward_context(task):
            y = layer(x)
        y.backward(upstream.to(y.dtype))
        if optimizer is not None:
            optimizer.step()
        layer.zero_grad()
        x.grad = None  # gradients are new in every step, as Trainer has them

    return run


def forward_context(task: Task) -> Any:
    """Autocast, where the precision asks for it."""
    return nullcontext() if task.dtype == "float32" else torch.autocast("cpu", dtype=DTYPES[task.dtype])


def activation_bytes(layer: nn.Module, task: Task) -> int:
    """What a forward keeps for its backward, without what is there anyway: parameters and the input."""
    x = torch.randn(task.tokens, task.hidden).requires_grad_()
    resident = {tensor.untyped_storage().data_ptr() for tensor in [x, *layer.parameters()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in resident:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), forward_context(task):
        output = layer(x)
    total = sum(kept.values())
    del output
    return total


def rows(tasks: Sequence[Task] = FULL) -> list[dict[str, Any]]:
    """The rows of bench.json: times of the step, and the bytes it keeps."""
    return [asdict(row) for task in tasks for row in measured(task)]


def measured(task: Task) -> Iterator[Row]:
    """All rows of a task."""
    layers = {
        QAT: mote(task, quantized=True),
        UNQUANTIZED: mote(task, quantized=False),
        FULL_PRECISION: full_precision(task),
        DENSE: FeedForward(task.hidden, task.inner),
    }
    contenders = {name: [step(layer, task)] for name, layer in layers.items()}
    contenders |= {
        name + ADAMW: [step(layers[name], task, torch.optim.AdamW(layers[name].parameters(), lr=1e-5))]
        for name in (QAT, FULL_PRECISION)
        if task.optimizer
    }
    times = race(contenders, task.seconds, rounds=task.rounds)
    more: dict[str, Any] = {"shape": task.shape, "tokens": task.tokens, "dtype": task.dtype}
    yield compared("qat-step-vs-fp-moe", QAT, FULL_PRECISION, times, **more)
    yield compared("qat-step-vs-unquantized", QAT, UNQUANTIZED, times, **more)
    yield compared("qat-step-vs-dense", QAT, DENSE, times, **more)
    if task.optimizer:
        yield compared("qat-optimizer-step-vs-fp-moe", QAT + ADAMW, FULL_PRECISION + ADAMW, times, **more)
    ours, theirs = (activation_bytes(layers[name], task) for name in (QAT, FULL_PRECISION))
    note = f"{ours} and {theirs} bytes kept from forward to backward, parameters and input apart"
    ratio = theirs / ours
    yield Row("activation-bytes-vs-fp-moe", QAT, FULL_PRECISION, ratio, (ratio, ratio), note=note, **more)
