"""Experts in training as one step of autograd, against the same network operation by operation."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mote_quant.kernels.cpu import library, quantizers
from mote_quant.moe import experts as experts_module
from mote_quant.moe.experts import Expert, quantize_input
from mote_quant.moe.trained import feed_forward, grouped_feed_forward
from mote_quant.qat import latent, product
from mote_quant.qat.linear import QatLinear
from mote_quant.recipe.schema import BinaryBits, IntegerBits, TernaryBits
from tests.mixtures import TERNARY, one_block

SPECS = {
    "ternary": TernaryBits(format="ternary"),
    "ternary by channel, float input": TernaryBits(format="ternary", granularity="channel", activations="none"),
    "ternary by group": TernaryBits(format="ternary", granularity="group", group_size=7, scale_dtype="float16"),
    "ternary, learned by group": TernaryBits(format="ternary", granularity="group", group_size=8, scales="learned"),
    "ternary, learned": TernaryBits(format="ternary", scales="learned", scale_dtype="float16"),
    "binary": BinaryBits(format="binary"),
    "binary, learned by channel": BinaryBits(format="binary", granularity="channel", scales="learned"),
}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "autocast": torch.float32}


@pytest.fixture(autouse=True)
def products_of_floats(monkeypatch):
    """Autograd multiplies floats: to be compared with it, so do we. Integers have a test of their own."""
    monkeypatch.setattr(product, "_fast_integers", lambda: False)


def expert(spec=SPECS["ternary"], gated: bool = True, bias: bool = False, down=None) -> Expert:
    """Of 19 and 30 units, in float32 as latent weights always are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        up, gate = (QatLinear(19, 30, spec, bias=bias) for _ in range(2))
        made = Expert(up, QatLinear(30, 19, down or spec, bias=bias), gate if gated else None)
    return made.train()


def tokens(count: int = 23, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(count, 19, generator=torch.Generator().manual_seed(1)).to(dtype)


def run(made: Expert, precision: str = "float32", activation: nn.Module | None = None) -> dict[str, Tensor | None]:
    """The output, and the gradients of everything that has one."""
    made.zero_grad()
    x = tokens(dtype=PRECISIONS[precision]).requires_grad_()
    autocast = torch.autocast("cpu", dtype=torch.bfloat16) if precision == "autocast" else nullcontext()
    with autocast:
        output = made(quantize_input(made.up_proj, x), activation or nn.SiLU())
    (output.float() * torch.linspace(-1, 1, 19)).sum().backward()
    return {"output": output.detach(), "x": x.grad} | {name: p.grad for name, p in made.named_parameters()}


@pytest.fixture
def step_by_step(monkeypatch):
    """Runs an expert operation by operation, as autograd differentiates it."""

    def call(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(experts_module, "feed_forward", lambda *given: None)
            return run(*arguments)

    return call


def assert_same(found, wanted, precision: str = "float32", exact: bool = True) -> None:
    """Outputs to the bit if `exact`: the same products in the same order. Gradients to rounding."""
    assert found.keys() == wanted.keys()
    if exact:
        assert torch.equal(found["output"], wanted["output"])
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype, name
        tolerance = 1e-5 if precision == "float32" else 2e-2
        assert (found[name] - tensor).norm() <= tolerance * tensor.norm(), name


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("spec", SPECS)
def test_output_and_gradients_are_those_of_autograd(spec, precision, step_by_step):
    made = expert(SPECS[spec])
    found = run(made, precision)
    assert all(tensor.any() for tensor in found.values())
    assert_same(found, step_by_step(made, precision), precision, exact=precision != "autocast")


@pytest.mark.parametrize("activation", [nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.ReLU()])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("gated", [False, True])
def test_plain_networks_biases_and_any_activation(gated, bias, activation, step_by_step):
    made = expert(gated=gated, bias=bias)
    assert_same(run(made, "float32", activation), step_by_step(made, "float32", activation))


@pytest.mark.parametrize("spec", SPECS)
def test_without_native_kernels_nothing_changes(spec, monkeypatch):
    made = expert(SPECS[spec])
    native = run(made)
    monkeypatch.setattr(quantizers, "supports", lambda x, dtype=None: False)
    assert_same(run(made), native)


@pytest.mark.skipif(library.level() in (None, library.Level.portable), reason="no fast products of integers here")
@pytest.mark.parametrize("spec", SPECS)
def test_the_forward_in_integers_is_that_of_floats_to_rounding(spec, monkeypatch):
    made = expert(SPECS[spec], bias=True)
    floats, calls = run(made), library.calls()["ternary_matmul"]
    monkeypatch.undo()
    integers = run(made)
    int8 = SPECS[spec].activations == "int8" and SPECS[spec].granularity != "group"
    assert library.calls()["ternary_matmul"] == calls + 3 * int8
    for name, wanted in floats.items():
        # Sums in another order may round a hidden unit to the next of its 255 values.
        assert (integers[name] - wanted).norm() <= 5e-3 * wanted.norm(), name


@pytest.mark.parametrize("spec", SPECS)
def test_weights_are_expanded_part_by_part(spec, monkeypatch):
    made = expert(SPECS[spec], bias=True)
    whole, parts = run(made), []
    monkeypatch.setattr(latent, "LARGEST_PART", 500)
    values = latent.Latent.values
    monkeypatch.setattr(latent.Latent, "values", lambda self, dtype: parts.append(values(self, dtype)) or parts[-1])
    assert_same(run(made), whole, exact=False)
    assert len(parts) > 3 * 4
    assert sorted(part.nbytes for part in parts)[len(parts) // 2] < 30 * 19 * 4 / 2


def test_one_layer_that_rounds_its_input_decides_for_both_that_share_it(monkeypatch, step_by_step):
    """As `quantize_input` of the up projection does."""
    made = expert(SPECS["ternary by channel, float input"], down=SPECS["ternary"])
    made.gate_proj.spec = SPECS["ternary"]
    wanted = step_by_step(made)
    assert_same(run(made), wanted)
    monkeypatch.undo()
    found = run(made)
    assert (found["output"] - wanted["output"]).norm() <= 5e-3 * wanted["output"].norm()


def test_layers_of_one_expert_may_differ():
    made = expert(SPECS["ternary"], down=SPECS["binary, learned by channel"])
    assert run(made)["down_proj.weight_scale"].any()


REST = {
    "an integer format": lambda: expert(IntegerBits(format="int4", group_size=16, method="qat")),
    "one layer of an integer format": lambda: expert(down=IntegerBits(format="int4", group_size=16, method="qat")),
    "the ramp": lambda: blended(expert(), 0.5),
    "full precision for now": lambda: blended(expert(), 0.0),
    "a plain linear layer": lambda: Expert(nn.Linear(19, 30), nn.Linear(30, 19)),
}


def blended(made: Expert, strength: float) -> Expert:
    for layer in made.children():
        layer.strength = strength
    return made


@pytest.mark.parametrize("case", REST)
def test_other_layers_are_left_to_autograd(case, step_by_step):
    made = REST[case]()
    assert feed_forward(list(made.children()), tokens(), nn.SiLU()) is None
    assert_same(run(made), step_by_step(made))


def test_an_activation_that_learns_or_overwrites_is_left_to_autograd(step_by_step):
    learning = nn.PReLU()
    made = expert(gated=False)
    assert_same(run(made, "float32", learning), step_by_step(made, "float32", learning))
    assert learning.weight.grad is not None
    assert feed_forward(list(made.children()), tokens(), nn.ReLU(inplace=True)) is None


def test_what_is_frozen_gets_no_gradient_and_costs_no_product():
    made = expert(bias=True)
    made.up_proj.requires_grad_(False)
    made.down_proj.weight.requires_grad_(False)
    found = run(made)
    without = {"up_proj.weight", "up_proj.bias", "down_proj.weight"}
    assert {name for name, gradient in found.items() if gradient is None} == without
    output = made(tokens(), nn.SiLU())
    output.sum().backward()  # x itself asks for none
    assert made.gate_proj.weight.grad is not None


def kept_by(made, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: found.append(tensor) or tensor, lambda tensor: tensor):
        made(x)
    return found


def test_no_float_copy_of_a_weight_and_fewer_activations_are_kept():
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours = one_block(TERNARY).train()
    ours.shared_expert.requires_grad_(False)
    theirs = one_block(shared="none", top_k=2).train()
    sizes = []
    for block in (ours, theirs):
        held = {p.data_ptr() for p in block.parameters()} | {x.data_ptr()}
        kept = {tensor.data_ptr(): tensor for tensor in kept_by(block, x) if tensor.data_ptr() not in held}
        sizes.append(sum(tensor.nbytes for tensor in kept.values()))
        if block is ours:
            weights = [tensor for tensor in kept.values() if tensor.shape in ((48, 32), (32, 48))]
            assert not [tensor for tensor in weights if tensor.is_floating_point()]
    assert sizes[0] < 0.8 * sizes[1]


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_nothing(reentrant):
    block = one_block(TERNARY).train()
    found = []
    for wrapped in (block, lambda x: checkpoint(block, x, use_reentrant=reentrant)):
        block.zero_grad()
        x = torch.randn(40, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
        wrapped(x).square().sum().backward()
        found.append([x.grad, *(p.grad.clone() for p in block.parameters() if p.grad is not None)])
    assert len(found[0]) > 12
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("spec", SPECS)
def test_a_latent_weight_that_is_no_number_is_seen_in_the_output(spec):
    made = expert(SPECS[spec])
    with torch.no_grad():
        made.down_proj.weight[3, 4] = float("nan")
    assert run(made)["output"].isnan().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("counts", [[5, 0, 9, 2], [0, 0, 7, 0], [16, 0, 0, 0]])
def test_products_of_all_experts_at_once_are_those_of_each(counts, spec, bias, dtype):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [[QatLinear(*size, SPECS[spec], bias=bias) for size in ((32, 48), (32, 48), (48, 32))] for _ in counts]
    found = []
    for together in (True, False):
        x = torch.randn(sum(counts), 32, generator=torch.Generator().manual_seed(2)).to(dtype).requires_grad_()
        if together:
            output = grouped_feed_forward(layers, x, counts, nn.SiLU())
        else:
            parts = zip(layers, x.split(counts), strict=True)
            output = torch.cat([feed_forward(each, part, nn.SiLU()) for each, part in parts if len(part)])
        (output.float() * torch.linspace(-1, 1, 32)).sum().backward()
        parameters = [p for each in layers for layer in each for p in layer.parameters()]
        found.append([output.detach(), x.grad, *(p.grad for p in parameters)])
        for parameter in parameters:
            parameter.grad = None
    for ours, theirs in zip(*found, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert ours.dtype == theirs.dtype
            relative, absolute = (1e-5, 0.0) if dtype == torch.float32 else (2e-2, 5e-3)
            assert (ours - theirs).norm() <= relative * theirs.norm() + absolute
    assert sum(gradient is not None for gradient in found[0][2:]) * len(counts) == len(parameters) * sum(
        map(bool, counts)
    )


def test_gradients_of_grouped_products_are_slices_of_one_tensor():
    layers = [[QatLinear(32, 48, SPECS["ternary"]), QatLinear(48, 32, SPECS["ternary"])] for _ in range(3)]
    grouped_feed_forward(layers, torch.randn(9, 32), [4, 0, 5], nn.SiLU()).sum().backward()
    first, idle, last = (up.weight.grad for up, _ in layers)
    assert idle is None
    assert first.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
    assert first.untyped_storage().nbytes() == 2 * first.nbytes


def test_shapes_that_grouped_products_do_not_take_are_left_to_others():
    layers = [[QatLinear(19, 30, SPECS["ternary"]), QatLinear(30, 19, SPECS["ternary"])]]
    assert grouped_feed_forward(layers, torch.randn(4, 19), [4], nn.SiLU()) is None
    assert grouped_feed_forward(layers, torch.randn(0, 19), [0], nn.SiLU()) is None


def test_weights_that_move_between_forward_and_backward():
    """Codes are those of the forward; a learned scale's gradient needs the weights themselves, which is an error."""
    for spec, fails in ((SPECS["ternary"], False), (SPECS["ternary, learned"], True)):
        made = expert(spec)
        output = made(tokens(), nn.SiLU())
        with torch.no_grad():
            made.up_proj.weight.mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation") if fails else nullcontext():
            output.sum().backward()


def test_a_second_derivative_is_refused_not_wrong():
    made, x = expert(), tokens().requires_grad_()
    (gradient,) = torch.autograd.grad(made(x, nn.SiLU()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_a_copy_computes_the_same():
    made = expert(SPECS["ternary, learned by group"])
    found = run(made)
    assert_same(run(copy.deepcopy(made)), found)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_compiled_layer_traces_the_network_operation_by_operation():
    """No pointer is taken of a traced tensor, and the graph breaks where it did: at the counts of tokens."""
    block = one_block(TERNARY).train()
    x = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    wanted, found = block(x), torch.compile(block, backend="eager")(x)
    assert (found - wanted).norm() <= 5e-3 * wanted.norm()
    found.sum().backward()
    assert all(layer.weight.grad is not None for layer in block.experts[0].layers)
    explained = torch._dynamo.explain(block.experts[0])(x, nn.SiLU())
    assert explained.graph_break_count == 0
