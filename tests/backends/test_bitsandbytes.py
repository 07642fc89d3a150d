"""Against bitsandbytes itself. Runs where it is installed: `make test-backends` has an environment with it."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import mote_quant
from mote_quant.errors import BadWeightsError, FormatError
from mote_quant.formats import Codes, format_for
from mote_quant.formats.codebook import SCALE_OFFSET, SCALE_SCALE, SCALE_TABLE, TABLES, table_of
from mote_quant.hf.attach import attach
from mote_quant.hf.bnb import absorb, module_names, read
from mote_quant.kernels import PackedLinear, bnb, table
from mote_quant.recipe.plain import settings as settings_of
from mote_quant.recipe.schema import CodebookBits, IntegerBits, PackedBits
from mote_quant.steps.quantize.backends.bitsandbytes import quantize_codebook, quantize_int8
from mote_quant.steps.quantize.methods.codebook import codebook, dynamic_table
from tests.backends.beside import needs
from tests.mixtures import TRAIN
from tests.pico import PICO, inputs
from tests.sources import source_for

needs("bitsandbytes", "bnb")
import bitsandbytes as library  # noqa: E402

functional = library.functional

ROOT = Path(__file__).parents[2]
specs = st.builds(
    CodebookBits,
    format=st.sampled_from(["nf4", "fp4"]),
    block_size=st.sampled_from([64, 128, 256, 512]),
    double_quant=st.booleans(),
)
WHOLE = {"hidden": 64, "ffn": 128}  # bitsandbytes' own CPU kernels misread blocks that straddle rows


def borders() -> Tensor:
    """Every value of both tables and every midpoint: where a tie can go either way."""
    tables = [table_of(name).sort().values for name in TABLES]
    return torch.cat([*tables, *((table[1:] + table[:-1]) / 2 for table in tables)])


KINDS = {
    "normal": lambda shape, g: torch.randn(shape, generator=g),
    "tiny": lambda shape, g: torch.randn(shape, generator=g) * 1e-9,
    "huge": lambda shape, g: torch.randn(shape, generator=g) * 1e30,
    "zeros": lambda shape, g: torch.zeros(shape),
    "equal": lambda shape, g: torch.full(shape, -0.37),
    "sparse": lambda shape, g: torch.randn(shape, generator=g) * (torch.rand(shape, generator=g) < 0.1),
    "bfloat16": lambda shape, g: torch.randn(shape, generator=g).bfloat16(),
    "float16": lambda shape, g: torch.randn(shape, generator=g).half(),
    "ties": lambda shape, g: borders()[torch.randint(len(borders()), shape, generator=g)],
}


def weight(kind: str, rows: int, columns: int, seed: int) -> Tensor:
    return KINDS[kind]((rows, columns), torch.Generator().manual_seed(seed))


def stored(codes: Codes, spec: PackedBits) -> dict[str, Tensor]:
    return format_for(spec).compress(codes)


def pack(values: Tensor, spec: CodebookBits) -> PackedLinear:
    return PackedLinear.pack(spec, codebook(values, spec), None, torch.float32)


def theirs(values: Tensor, spec: CodebookBits) -> Tensor:
    """bitsandbytes' dequantized weight, in one row: there its kernels count blocks right."""
    packed, state = functional.quantize_4bit(
        values.float(), None, None, spec.block_size, spec.double_quant, spec.format
    )
    state.shape = torch.Size((1, values.numel()))
    return functional.dequantize_4bit(packed, state).view(values.shape)


@settings(deadline=None, max_examples=300)
@given(
    spec=specs,
    kind=st.sampled_from(list(KINDS)),
    rows=st.integers(1, 40),
    columns=st.one_of(st.integers(1, 200), st.sampled_from([64, 128, 512])),
    seed=st.integers(0, 999),
)
def test_our_codes_and_scales_are_theirs_to_the_bit(spec, kind, rows, columns, seed):
    values = weight(kind, rows, columns, seed)
    plain = spec.model_copy(update={"double_quant": False})
    packed, state = functional.quantize_4bit(values, blocksize=spec.block_size, quant_type=spec.format)
    ours = stored(codebook(values, plain), plain)
    assert torch.equal(ours["weight"].flatten(), packed.flatten())
    assert torch.equal(ours["weight_scale"], state.absmax)

    by_library = stored(quantize_codebook(values, plain), plain)
    assert all(torch.equal(tensor, ours[name]) for name, tensor in by_library.items())


@settings(deadline=None, max_examples=100)
@given(spec=specs, kind=st.sampled_from(list(KINDS)), rows=st.integers(1, 130), columns=st.integers(1, 200))
def test_our_doubly_quantized_scales_are_theirs_or_nearer(spec, kind, rows, columns):
    """bitsandbytes on CPUs finds the nearest of 256 values on a grid of 65,536: near ties may go wrong there."""
    double = spec.model_copy(update={"double_quant": True})
    values = weight(kind, rows, columns, 0)
    ours, library_s = stored(codebook(values, double), double), stored(quantize_codebook(values, double), double)
    for name in ("weight", SCALE_TABLE, SCALE_OFFSET):
        assert torch.equal(ours[name], library_s[name])
    assert torch.allclose(ours[SCALE_SCALE], library_s[SCALE_SCALE], rtol=0, atol=1e-37)
    exact = codebook(values, double.model_copy(update={"double_quant": False})).scale
    error, their_error = ((format_for(double).scales(tensors) - exact).abs() for tensors in (ours, library_s))
    assert bool((error <= their_error + 1e-6 * exact.abs().max() + 1e-37).all())


def test_of_a_normal_weight_hardly_a_doubly_quantized_scale_differs():
    spec = CodebookBits(format="nf4", double_quant=True)
    values = weight("normal", 512, 512, 0)
    ours, library_s = codebook(values, spec).scale, quantize_codebook(values, spec).scale
    assert int((ours != library_s).sum()) <= len(ours) // 200


def test_the_table_of_the_scales_is_theirs():
    assert torch.equal(dynamic_table(), functional.create_dynamic_map())


@settings(deadline=None, max_examples=60)
@given(
    spec=specs,
    kind=st.sampled_from(list(KINDS)),
    rows=st.integers(1, 20),
    columns=st.integers(1, 100).map(lambda n: 2 * n),
)
def test_dequantized_weights_are_theirs_to_the_bit(spec, kind, rows, columns):
    values = weight(kind, rows, columns, 1).float()
    form = format_for(spec)
    tensors = stored(quantize_codebook(values, spec), spec)
    assert torch.equal(form.decompress(tensors, (rows, columns), torch.float32), theirs(values, spec))


@settings(deadline=None, max_examples=40)
@given(kind=st.sampled_from(["normal", "sparse", "bfloat16"]), rows=st.integers(1, 20), columns=st.integers(1, 100))
def test_int8_codes_are_theirs_and_weights_agree_to_rounding(kind, rows, columns):
    values = weight(kind, rows, columns, 2).float()
    values[:, 0] = values[:, 0].abs() + 0.1  # no row of zeros
    codes, largest, _ = functional.int8_vectorwise_quant(values.half())
    dense = functional.int8_vectorwise_dequant(codes, largest)
    for dtype, tolerance in (("float32", 3e-7), ("float16", 6e-4)):
        spec = IntegerBits(format="int8", scale_dtype=dtype, backend="bitsandbytes")
        tensors = stored(quantize_int8(values, spec), spec)
        assert torch.equal(format_for(spec).codes(tensors, (rows, columns)), codes.short())
        ours = format_for(spec).decompress(tensors, (rows, columns), torch.float32)
        assert torch.allclose(ours, dense, rtol=tolerance, atol=0)


def test_int8_of_a_row_of_zeros_is_zero_and_of_what_float16_cannot_hold_an_error():
    spec = IntegerBits(format="int8", backend="bitsandbytes")
    values = torch.zeros(2, 9)
    values[0] = 1.0
    form = format_for(spec)
    assert torch.equal(form.decompress(stored(quantize_int8(values, spec), spec), (2, 9), torch.float32)[1], values[1])
    with pytest.raises(FormatError, match=r"up_proj.*take backend: own"):
        quantize_int8(torch.full((2, 9), 1e6), spec, name="up_proj")


def test_weights_that_are_not_finite_are_refused_by_name():
    for quantize, spec in (
        (quantize_codebook, CodebookBits(format="nf4", backend="bitsandbytes")),
        (quantize_int8, IntegerBits(format="int8", backend="bitsandbytes")),
    ):
        with pytest.raises(BadWeightsError, match="q_proj"):
            quantize(torch.full((2, 3), torch.nan), spec, name="q_proj")


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("format", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_their_product_agrees_with_the_reference_to_rounding(format, double, dtype):
    spec = CodebookBits(format=format, double_quant=double)
    layer, x = pack(weight("normal", 40, 128, 3), spec), torch.randn(2, 5, 128).to(dtype)
    bias = torch.randn(40).to(dtype)
    chosen, reference = table.OPS["codebook_matmul"]
    assert table._select("codebook_matmul", x, layer.packed) is chosen
    assert chosen.name == "bitsandbytes"
    assert reference.name == "torch"
    ours, fast = (choice.run(x, layer.packed, bias) for choice in (reference, chosen))
    assert fast.dtype == dtype
    assert torch.allclose(
        fast.float(), ours.float(), rtol=0, atol=40 * torch.finfo(dtype).eps * float(ours.abs().max())
    )


def test_gradients_flow_to_the_input_and_do_not_keep_the_dense_weight():
    layer = pack(weight("normal", 40, 128, 3), CodebookBits(format="nf4"))
    x = torch.randn(2, 128, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = layer(x)
    y.sum().backward()
    assert torch.allclose(x.grad, layer.dequantize().sum(0).expand_as(x), atol=1e-5)
    assert sum(kept) < 40 * 128


RELOAD = """
import sys
from pathlib import Path
how, folder = sys.argv[1], Path(sys.argv[2])
if how == "without":
    sys.modules["bitsandbytes"] = None
import torch, mote_quant
from transformers import AutoModelForCausalLM
batch = torch.load(folder / "batch")
for path in folder.glob("*-*"):
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    torch.save(model(**batch).logits, path / how)
assert (sys.modules.get("bitsandbytes") is not None) == (how == "with")
"""


def small_specs(backend: str) -> dict[str, PackedBits]:
    return {
        f"nf4-{backend}": CodebookBits(format="nf4", backend=backend),
        f"fp4-{backend}": CodebookBits(format="fp4", backend=backend),
        f"double-{backend}": CodebookBits(format="nf4", double_quant=True, backend=backend),
        f"int8-{backend}": IntegerBits(format="int8", backend=backend),
    }


RELOADED = small_specs("own") | small_specs("bitsandbytes")


@pytest.fixture(scope="module")
def reloaded(tmp_path_factory) -> Path:
    """Every model of `RELOADED`, saved, with the logits it gave here and in two fresh processes."""
    folder = tmp_path_factory.mktemp("reloaded")
    batch = inputs(PICO["llama"](**WHOLE))
    torch.save(batch, folder / "batch")
    for name, spec in RELOADED.items():
        model = PICO["llama"](**WHOLE)
        bits = {"ffn": settings_of(spec), "attention": settings_of(spec)}
        recipe = {"name": name, "bits": bits, "pipeline": ["quantize"]}
        mote_quant.apply(recipe, model, data=source_for(model), output=folder / name)
        packed = [module for module in model.modules() if isinstance(module, PackedLinear)]
        assert [module.spec for module in packed] == [spec] * 14
        with torch.no_grad():
            torch.save(model(**batch).logits, folder / name / "here")
    for how in ("with", "without"):
        subprocess.run([sys.executable, "-c", RELOAD, how, str(folder)], check=True, cwd=ROOT)
    return folder


@pytest.mark.parametrize("name", list(RELOADED))
def test_a_model_reloads_to_the_same_logits_with_and_without_the_library(name, reloaded):
    here, there, without = (torch.load(reloaded / name / how) for how in ("here", "with", "without"))
    assert torch.equal(there, here)
    assert torch.equal(without, here)


BASES = {
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "nf4 twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "fp4 bf16": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4", "bnb_4bit_compute_dtype": torch.bfloat16},
    "nf4 in bf16": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_quant_storage": torch.bfloat16},
    "int8": {"load_in_8bit": True},
}


def base(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32, **settings) -> torch.nn.Module:
    """A pico model as transformers loads it, quantized by bitsandbytes."""
    PICO[family](**WHOLE).to(dtype).save_pretrained(folder)
    config = BitsAndBytesConfig(**settings)
    return AutoModelForCausalLM.from_pretrained(folder, quantization_config=config, dtype=dtype, device_map="cpu")


def their_layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    kinds = (library.nn.Linear4bit, library.nn.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def dense(module: torch.nn.Module) -> Tensor:
    if isinstance(module, library.nn.Linear8bitLt):
        return functional.int8_vectorwise_dequant(module.weight.data, module.weight.SCB)
    return functional.dequantize_4bit(module.weight.data, module.weight.quant_state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(BASES))
def test_a_base_is_absorbed_with_its_own_codes_and_saves_as_ours(name, dtype, tmp_path):
    model = base(tmp_path / "dense", dtype=dtype, **BASES[name])
    expected = {path: dense(module).clone() for path, module in their_layers(model).items()}
    assert len(expected) == 14
    assert absorb(model) == 14
    assert not their_layers(model)
    for path, weight_ in expected.items():
        packed = model.get_submodule(path)
        assert isinstance(packed, PackedLinear)
        assert packed.dtype == dtype
        ours = packed.dequantize()
        assert torch.equal(ours, weight_) or (name == "int8" and torch.allclose(ours.float(), weight_, rtol=8e-3))

    assert absorb(model) == 0
    assert not hasattr(model.config, "quantization_config")
    attach(model, finished=True)
    model.save_pretrained(tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    batch = inputs(model)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("name", list(BASES))
def test_a_saved_base_is_absorbed_and_read_alike(name, tmp_path):
    model = base(tmp_path / "dense", **BASES[name])
    model.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", device_map="cpu")
    live, saved = copy.deepcopy(model), loaded
    absorb(live)
    absorb(saved)

    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    names = module_names(tensors)
    assert len(names) == 14
    for path in names:
        own = {key.removeprefix(f"{path}."): value for key, value in tensors.items() if key.startswith(f"{path}.")}
        spec, codes = read(own, path)
        for absorbed in (live, saved):
            packed = absorbed.get_submodule(path)
            assert packed.spec == spec
            parts = stored(codes, spec)
            assert all(torch.equal(parts[key], value) for key, value in packed.packed.tensors.items())


@pytest.mark.parametrize("name", ["nf4", "nf4 twice"])
def test_a_base_that_has_run_is_absorbed_as_it_now_is(name, tmp_path):
    """On a CPU with AVX512-BF16 a forward rounds and turns the scales in place; elsewhere it leaves them alone."""
    model = base(tmp_path / "dense", **BASES[name])
    before = {path: dense(module).clone() for path, module in their_layers(model).items()}
    with torch.no_grad():
        ran = model(**inputs(model)).logits
    absorb(model)
    for path, weight_ in before.items():
        assert torch.allclose(model.get_submodule(path).dequantize(), weight_, rtol=0.02, atol=0)
    with torch.no_grad():
        assert torch.allclose(model(**inputs(model)).logits, ran, atol=0.05 * float(ran.abs().max()))


def test_conv1d_is_absorbed_the_right_way_round(tmp_path):
    model = base(tmp_path, family="gpt2", **BASES["nf4"])
    expected = {path: dense(module).clone() for path, module in their_layers(model).items()}
    assert "transformer.h.0.attn.c_attn" in expected
    absorb(model)
    attach(model, finished=True)
    model.save_pretrained(tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype="auto")
    for path, weight_ in expected.items():
        assert torch.equal(again.get_submodule(path).dequantize(), weight_)
        assert torch.equal(again.get_submodule(path).bias, model.get_submodule(path).bias)


@pytest.mark.parametrize("how", ["live", "folder"])
def test_a_base_is_up_cycled_trained_saved_reloaded_and_generates(how, tmp_path):
    model = base(tmp_path / "dense", **BASES["nf4 twice"])
    expected = {path: dense(module).clone() for path, module in their_layers(model).items()}
    if how == "folder":
        model.save_pretrained(tmp_path / "base")
        model = mote_quant.load_model(tmp_path / "base")
    steps = [{"upcycle": {"experts": 3}}, {"train": TRAIN}, "quantize"]
    recipe = {"name": "mote", "bits": {"routed": "ternary"}, "pipeline": steps}
    mote_quant.apply(recipe, model, data=source_for(model), output=tmp_path / "mote")

    again = AutoModelForCausalLM.from_pretrained(tmp_path / "mote", dtype="auto")
    for path, weight_ in expected.items():
        kept = again.get_submodule(path.replace(".mlp.", ".mlp.shared_expert."))
        assert kept.spec == CodebookBits(format="nf4", double_quant=True, backend="bitsandbytes")
        assert torch.equal(kept.dequantize(), weight_)
    batch = inputs(again)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
        tokens = again.generate(batch["input_ids"], max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape[1] == batch["input_ids"].shape[1] + 4


def test_the_library_is_found_once(caplog):
    assert bnb.installed()
    assert bnb.library() is library
