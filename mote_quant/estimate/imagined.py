"""A training step that is gone through without numbers: the model as it trains, on fake tensors, and a batch of it.

Nothing is computed, so models of any size are traced on any machine in about a second, with the code that trains them:
what backward keeps, temporary tensors and the moment each is freed are not estimated but found.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from mote_quant.anatomy.structure import ask, decoder_layers, under
from mote_quant.errors import first_line
from mote_quant.estimate.timeline import AFTER, BETWEEN, Place, Timeline
from mote_quant.estimate.tracing import Tracing
from mote_quant.hf.apart import to_train
from mote_quant.hf.latents import make_latent
from mote_quant.hf.skeleton import shadow
from mote_quant.hf.structure import Structure, structure_of
from mote_quant.hf.unfuse import unfuse
from mote_quant.kernels.cpu.library import library
from mote_quant.moe import install
from mote_quant.parallel import codes_suffice, known_by_codes
from mote_quant.planning import Plan
from mote_quant.qat.keeping import keeping
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import Train
from mote_quant.steps.train.selection import trainable_names
from mote_quant.steps.train.surroundings import surroundings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Unit:
    """Bytes of parameters of a layer that FSDP2 gathers and frees, and of their gradients.

    `once`: bytes of those that are gathered for forward only.
    """

    weights: int
    gradients: int
    once: int = 0


@dataclass(frozen=True)
class Imagined:
    """A model while it trains. `weights`: bytes of all parameters and buffers; `trained`: (bytes of a number, numbers)
    of each tensor that does; `units`: what is beside the decoder layers, then each of them; `timeline`: its step, None
    where fake tensors are not enough for it.
    """

    weights: int
    trained: tuple[tuple[int, int], ...]
    units: tuple[Unit, ...]
    timeline: Timeline | None

    @property
    def gradients(self) -> int:
        """Bytes of all of them: each is of the type of its weight."""
        return sum(size * count for size, count in self.trained)


def imagine(plan: Plan, skeleton: nn.Module, config: Train, length: int, packs: bool) -> Imagined:
    """Go through a step of `config` with samples of `length` tokens; `skeleton` is as `plan_on` left it.

    With `packs` the codes of rounded weights take 2 bits, as on CPUs that have native quantizers, else a byte.
    """
    model = _untrained(plan, skeleton)
    chosen = trainable_names(model, config.what)
    with ExitStack() as stack:
        stack.enter_context(surroundings(model, config.model_copy(update={"compile": False}), chosen))
        stack.enter_context(_fake(model))
        model.train()
        cast(Any, model).config.use_cache = False
        for layer in (module for module in model.modules() if isinstance(module, QatLinear)):
            layer.strength = _strength(config)
        weights = _bytes([*model.parameters(), *model.buffers()])
        trained = tuple((p.element_size(), p.numel()) for p in model.parameters() if p.requires_grad)
        units = tuple(units_of(model, codes_suffice(config)))
        return Imagined(weights, trained, units, _timeline(model, config, length, packs and library() is not None))


def _timeline(model: nn.Module, config: Train, length: int, packs: bool) -> Timeline | None:
    try:
        return _trace(model, config, length, packs)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        _log.info("a training step of %s is not traced but estimated: %s", type(model).__name__, first_line(error))
        return None


def _untrained(plan: Plan, skeleton: nn.Module) -> nn.Module:
    """The meta model as its training finds it: with its mixtures, all that the run itself packs still in floats."""
    found = structure_of(skeleton, latent=True)
    before = {name: spec for name, spec in found.packed.items() if not _made(name, plan)}
    model = shadow(skeleton, Structure(packed=before))
    unfuse(model, to_train(plan.recipe.bits, model))
    for layout in plan.layouts:
        install(model, layout)
    make_latent(model, plan.formats)
    return model


def _made(name: str, plan: Plan) -> bool:
    return name in plan.formats or any(under(name, layout.path) for layout in plan.layouts)


@contextmanager
def _fake(model: nn.Module) -> Iterator[None]:
    """Inside, `model` lies on a CPU that holds no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu")
        cast(Any, model).tie_weights()
        yield


def _strength(config: Train) -> float:
    """How far weights are rounded when most is held: while they are blended, both kinds are."""
    if not config.fake_quantize:
        return 0.0
    return 0.5 if config.ternary_ramp else 1.0


def _trace(model: nn.Module, config: Train, length: int, packs: bool) -> Timeline:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.gradient_accumulation > 1:
        # From the second micro-batch on they are there from the beginning.
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
    layers = [layer for _, layer in decoder_layers(model)]
    like = _alike(model, layers)
    tracing = Tracing(model, packs)
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        # Kept codes are known by the address of their weight, which is 0 here, and torch warns of it.
        warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
        if config.gradient_accumulation > 1 or config.gradient_checkpointing:
            stack.enter_context(keeping(model))
        for parameter in trained:
            stack.callback(cast(Any, parameter).register_post_accumulate_grad_hook(tracing.accumulated).remove)
        stack.enter_context(_Marks(tracing, layers, like).placed())
        with tracing:
            _step(model, config, torch.zeros(config.batch_size, length, dtype=torch.int64))
    return Timeline(tracing.ended(), like)


def _step(model: nn.Module, config: Train, tokens: Tensor) -> None:
    """What the trainer does with a micro-batch."""
    from accelerate.utils.operations import convert_outputs_to_fp32

    forward: Callable[..., Any] = model.__call__
    if config.precision == "bfloat16":
        forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(forward))

    def loss() -> Tensor:
        return cast(Tensor, forward(input_ids=tokens, labels=tokens, num_items_in_batch=tokens.new_ones(())).loss)

    loss().backward()  # type: ignore[no-untyped-call]


def _alike(model: nn.Module, layers: Sequence[nn.Module]) -> list[int]:
    """For each layer the first one like it: of the same parameters, on top of something that trains, or not.

    The lowest one is like no other: when its backward is over, what all layers share is freed.
    """
    first: dict[Any, int] = {}
    trains = any(parameter.requires_grad for parameter in ask(model, "get_input_embeddings").parameters())
    like = []
    for index, layer in enumerate(layers):
        kind = (
            index == 0,
            type(layer),
            trains,
            *((n, p.shape, p.dtype, p.requires_grad) for n, p in layer.named_parameters()),
        )
        like.append(first.setdefault(kind, index))
        trains = trains or any(parameter.requires_grad for parameter in layer.parameters())
    return like


class _Marks:
    """Tells `tracing` where it is; of layers that are alike only the first one runs."""

    def __init__(self, tracing: Tracing, layers: Sequence[nn.Module], like: Sequence[int]) -> None:
        self._tracing, self._layers, self._like = tracing, layers, like
        self._tuples = False

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Inside, they are there."""
        with ExitStack() as stack:
            for index, layer in enumerate(self._layers):
                if self._like[index] == index:
                    stack.callback(layer.register_forward_pre_hook(partial(self._enter, index)).remove)
                    stack.callback(layer.register_forward_hook(partial(self._leave, index)).remove)
                else:
                    layer.forward = self._skip
                    stack.callback(vars(layer).pop, "forward")
            yield

    def _skip(self, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        return (hidden_states,) if self._tuples else hidden_states

    def _enter(self, index: int, layer: nn.Module, given: tuple[Any, ...]) -> None:
        # Gradient checkpointing runs a layer once more in the middle of its backward.
        if self._tracing.place[0] == "backward":
            return
        self._tracing.place = ("forward", index)
        if index == 0 and given and given[0].requires_grad:
            given[0].register_hook(partial(self._return, AFTER))

    def _leave(self, index: int, layer: nn.Module, given: Any, output: Any) -> None:
        if self._tracing.place[0] == "backward":
            return
        self._tracing.place, self._tuples = BETWEEN, isinstance(output, tuple)
        hidden = output[0] if self._tuples else output
        if hidden.requires_grad:
            hidden.register_hook(partial(self._return, ("backward", index)))

    def _return(self, place: Place, gradient: Tensor) -> None:
        self._tracing.place = place


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of all of them; those that share memory once."""
    return sum({(storage := tensor.untyped_storage())._cdata: storage.nbytes() for tensor in tensors}.values())


def units_of(model: nn.Module, codes: bool) -> Iterator[Unit]:
    """What is beside the decoder layers, then each of them; with `codes` as backward knows weights by theirs."""
    layers = [layer for _, layer in decoder_layers(model)]
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    yield _unit([parameter for parameter in model.parameters() if id(parameter) not in inside])
    for layer in layers:
        coded = known_by_codes(layer) if codes else ()
        yield _unit([*layer.parameters()], [parameter for experts in coded for parameter in experts.parameters()])


def _unit(every: Sequence[nn.Parameter], once: Sequence[nn.Parameter] = ()) -> Unit:
    return Unit(_bytes(every), _bytes(parameter for parameter in every if parameter.requires_grad), _bytes(once))
